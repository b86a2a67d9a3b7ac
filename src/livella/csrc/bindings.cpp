// The operators, on LibTorch's stable ABI: one build serves every torch from 2.10 on.
//
// Arguments are checked here only as far as memory is at stake; functional.py explains to the user.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace livella {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

const Kernels& kernels() {
  static const Kernels* chosen = choose_kernels(std::getenv("LIVELLA_ISA"));
  STD_TORCH_CHECK(chosen != nullptr, "livella: LIVELLA_ISA names no instruction set of this machine; ",
                  "expected avx512, avx2 or portable, as far as the processor has them");
  return *chosen;
}

void run_on_threads(int64_t size, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    body(context, begin, end);
  });
}

Threads threads() { return {run_on_threads, static_cast<int64_t>(torch::stable::get_num_threads())}; }

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::Double:
      return Type::f64;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      STD_TORCH_CHECK(false, "livella: expected float32, float64, bfloat16 or float16");
  }
}

Activation activation_of(const std::optional<std::string>& name) {
  if (!name) return Activation::none;
  if (*name == "relu") return Activation::relu;
  if (*name == "relu6") return Activation::relu6;
  if (*name == "leaky_relu") return Activation::leaky_relu;
  if (*name == "silu") return Activation::silu;
  if (*name == "hardswish") return Activation::hardswish;
  STD_TORCH_CHECK(false, "livella: unknown activation ", *name);
}

// Whether memory holds the channels innermost, then the positions, then the samples, without gaps.
bool is_channels_last(const Tensor& x) {
  int64_t stride = 1;
  const auto next = [&](int64_t d) {
    const bool fits = x.size(d) == 1 || x.stride(d) == stride;
    stride *= x.size(d);
    return fits;
  };
  if (!next(1)) return false;
  for (int64_t d = x.dim() - 1; d >= 2; d--)
    if (!next(d)) return false;
  return next(0);
}

Layout layout_of(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), "livella: expected a tensor on the CPU");
  STD_TORCH_CHECK(x.dim() >= 2, "livella: expected an input of shape (N, C, ...)");
  STD_TORCH_CHECK(x.numel() > 0, "livella: expected an input of one value or more");
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); d++) positions *= x.size(d);
  const bool first = x.is_contiguous();
  const bool last = !first || (positions == 1 && x.size(1) > 1);
  STD_TORCH_CHECK(first || is_channels_last(x),
                  "livella: expected a contiguous or channels_last tensor; make it one of them");
  return {x.size(0), x.size(1), positions, last};
}

void check_like(const Tensor& t, const Tensor& x, const char* name) {
  bool same = t.is_cpu() && t.dim() == x.dim() && t.scalar_type() == x.scalar_type();
  for (int64_t d = 0; same && d < x.dim(); d++)
    same = t.size(d) == x.size(d) && (t.size(d) == 1 || t.stride(d) == x.stride(d));
  STD_TORCH_CHECK(same, "livella: expected ", name,
                  " of the input's shape, dtype and memory format; make it so, for example with "
                  "contiguous(memory_format=...)");
}

// New tensors by the shortest way there is: a call on a small input costs little else.
Tensor new_tensor(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

int32_t dtype_of(const Tensor& x) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

Tensor new_like(const Tensor& x) {
  return new_tensor(x.dim(), x.sizes().data(), x.strides().data(), dtype_of(x));
}

Tensor new_vector(int64_t size, int32_t dtype) {
  const int64_t stride = 1;
  return new_tensor(1, &size, &stride, dtype);
}

// Numbers of one a channel, in the type of x or the one it is computed in.
Numbers per_channel(const Tensor& t, const Tensor& x, const char* name) {
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) == channels, "livella: expected ", name,
                  " on the CPU, of shape (", channels, ",)");
  const Type type = type_of(t);
  const bool accumulated = type_of(x) != Type::f64 && type == Type::f32;
  STD_TORCH_CHECK(type == type_of(x) || accumulated, "livella: expected ", name,
                  " in the dtype of the input, or float32");
  return {const_cast<void*>(t.const_data_ptr()), type, channels, t.stride(0)};
}

std::vector<double> read(const Optional& t, const Tensor& x, double otherwise, const char* name) {
  std::vector<double> out(x.size(1), otherwise);
  if (t) read_numbers(per_channel(*t, x, name), out.data());
  return out;
}

// Whether any element of both is the same one: they may lie in one another's gaps.
bool share_memory(const Numbers& a, const Numbers& b) {
  const auto at = [](const Numbers& n, int64_t i) {
    const int64_t size = n.type == Type::f64 ? 8 : n.type == Type::f32 ? 4 : 2;
    return reinterpret_cast<int64_t>(n.memory) + i * n.stride * size;
  };
  const int64_t last = a.size - 1;
  if (at(a, last) < at(b, 0) || at(b, last) < at(a, 0)) return false;
  const int64_t step = std::max<int64_t>(1, at(b, 1) - at(b, 0));
  for (int64_t i = 0; i <= last; i++) {
    const int64_t beyond = at(a, i) - at(b, 0);
    if (beyond >= 0 && beyond <= last * step && beyond % step == 0) return true;
  }
  return false;
}

void check_training(const Layout& layout, double eps, const Numbers& mean, const Numbers& variance) {
  STD_TORCH_CHECK(layout.count() != 1, "livella: expected more than one value per channel");
  STD_TORCH_CHECK(eps > 0, "livella: expected eps above zero");
  STD_TORCH_CHECK((mean.memory != nullptr) == (variance.memory != nullptr),
                  "livella: expected both running averages, or neither");
  if (mean.memory == nullptr) return;
  STD_TORCH_CHECK(layout.channels < 2 || (mean.stride != 0 && variance.stride != 0),
                  "livella: expected running averages whose elements do not overlap");
  STD_TORCH_CHECK(!share_memory(mean, variance),
                  "livella: expected running averages in memory of their own");
}

// The share of this batch in the running averages; without a momentum, that of one in all so far.
double share(std::optional<double> momentum, const Optional& counter) {
  if (momentum) return *momentum;
  STD_TORCH_CHECK(counter, "livella: expected num_batches_tracked where momentum is None");
  return 1 / static_cast<double>(*counter->const_data_ptr<int64_t>() + 1);
}

bool worth_streaming(const Tensor& out) {
  return out.numel() * static_cast<int64_t>(out.element_size()) >= kStreamBytes;
}

std::tuple<Tensor, Tensor> batch_norm(Tensor input, Optional weight, Optional bias, Optional residual,
                                      Optional running_mean, Optional running_var,
                                      Optional num_batches_tracked, bool training,
                                      std::optional<double> momentum, double eps,
                                      std::optional<std::string> activation) {
  const Layout layout = layout_of(input);
  const int64_t channels = layout.channels;
  if (residual) check_like(*residual, input, "a residual");
  STD_TORCH_CHECK(training || (running_mean && running_var),
                  "livella: expected running_mean and running_var in evaluation");
  STD_TORCH_CHECK(eps >= 0, "livella: expected eps not below zero");
  Numbers averages[2] = {};
  if (running_mean) averages[0] = per_channel(*running_mean, input, "running_mean");
  if (running_var) averages[1] = per_channel(*running_var, input, "running_var");
  if (training) check_training(layout, eps, averages[0], averages[1]);
  if (num_batches_tracked)
    STD_TORCH_CHECK(num_batches_tracked->is_cpu() && num_batches_tracked->numel() == 1 &&
                        num_batches_tracked->scalar_type() == ScalarType::Long,
                    "livella: expected num_batches_tracked to be one int64 on the CPU");
  const bool updates = training && running_mean && layout.count() >= 2;
  const double part = updates ? share(momentum, num_batches_tracked) : 0;
  const Activation act = activation_of(activation);

  const auto gamma = read(weight, input, 1, "weight");
  const auto beta = read(bias, input, 0, "bias");
  Tensor output = new_like(input);
  const int64_t sizes[2] = {2, channels}, strides[2] = {channels, 1};
  Tensor statistics = new_tensor(2, sizes, strides, aoti_torch_dtype_float64());
  double* mean = statistics.mutable_data_ptr<double>();
  double* variance = mean + channels;
  if (!training) read_numbers(averages[0], mean), read_numbers(averages[1], variance);
  advise_huge_pages(output.mutable_data_ptr(), output.numel() * output.element_size());
  kernels().forward({layout, type_of(input), act, input.const_data_ptr(),
                     residual ? residual->const_data_ptr() : nullptr, output.mutable_data_ptr(),
                     gamma.data(), beta.data(), mean, variance, eps, training,
                     worth_streaming(output), threads()});

  if (updates) {
    const double count = static_cast<double>(layout.count());
    blend_numbers(averages[0], mean, 1, part);
    blend_numbers(averages[1], variance, count / (count - 1), part);
  }
  if (training && num_batches_tracked) ++*num_batches_tracked->mutable_data_ptr<int64_t>();
  for (int64_t c = 0; c < channels; c++) variance[c] = 1 / std::sqrt(variance[c] + eps);
  return {output, statistics};
}

// In evaluation, with nothing kept for a gradient.
Tensor batch_norm_inference(Tensor input, Tensor mean, Tensor var, Optional weight, Optional bias,
                            Optional residual, double eps, std::optional<std::string> activation) {
  const Layout layout = layout_of(input);
  if (residual) check_like(*residual, input, "a residual");
  STD_TORCH_CHECK(eps >= 0, "livella: expected eps not below zero");
  const Activation act = activation_of(activation);
  auto mu = read(mean, input, 0, "running_mean"), variance = read(var, input, 1, "running_var");
  const auto gamma = read(weight, input, 1, "weight");
  const auto beta = read(bias, input, 0, "bias");
  Tensor output = new_like(input);
  advise_huge_pages(output.mutable_data_ptr(), output.numel() * output.element_size());
  kernels().forward({layout, type_of(input), act, input.const_data_ptr(),
                     residual ? residual->const_data_ptr() : nullptr, output.mutable_data_ptr(),
                     gamma.data(), beta.data(), mu.data(), variance.data(), eps, false,
                     worth_streaming(output), threads()});
  return output;
}

// The gradients of input, weight, bias and residual; empty where not asked for, or, for the residual
// without an activation, the gradient of the output itself.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(
    Tensor grad, Tensor input, Tensor statistics, Optional weight, Optional bias, Optional saved,
    std::optional<std::string> activation, bool training, bool input_grad, bool parameters_grad,
    bool residual_grad) {
  const Layout layout = layout_of(input);
  const int64_t channels = layout.channels;
  check_like(grad, input, "a gradient");
  if (saved) check_like(*saved, input, "what was saved");
  STD_TORCH_CHECK(statistics.is_cpu() && statistics.numel() == 2 * channels &&
                      statistics.is_contiguous() && statistics.scalar_type() == ScalarType::Double,
                  "livella: expected statistics of shape (2, C) in float64");
  const Activation act = activation_of(activation);
  const bool keep_dz = residual_grad && act != Activation::none;
  const bool writes = input_grad || keep_dz;
  const auto gamma = read(weight, input, 1, "weight");
  const auto beta = read(bias, input, 0, "bias");
  const auto none = [&] { return new_vector(0, dtype_of(input)); };
  Tensor dx = writes ? new_like(input) : none();
  Tensor dresidual = keep_dz ? new_like(input) : none();
  const bool sums = parameters_grad || training;
  std::vector<double> sum(sums ? 2 * channels : 0);
  if (writes) advise_huge_pages(dx.mutable_data_ptr(), dx.numel() * dx.element_size());
  if (keep_dz)
    advise_huge_pages(dresidual.mutable_data_ptr(), dresidual.numel() * dresidual.element_size());

  const double* mean = statistics.const_data_ptr<double>();
  kernels().backward({layout, type_of(input), act, input.const_data_ptr(), grad.const_data_ptr(),
                      saved ? saved->const_data_ptr() : nullptr,
                      writes ? dx.mutable_data_ptr() : nullptr,
                      keep_dz ? dresidual.mutable_data_ptr() : nullptr, gamma.data(), beta.data(),
                      mean, mean + channels, sums ? sum.data() : nullptr,
                      sums ? sum.data() + channels : nullptr, training,
                      worth_streaming(input), threads()});

  const int32_t accumulated = type_of(input) == Type::f64 ? aoti_torch_dtype_float64()
                                                          : aoti_torch_dtype_float32();
  const auto gradient = [&](const Optional& parameter, const double* values) {
    if (!parameters_grad) return none();
    Tensor out = new_vector(channels, parameter ? dtype_of(*parameter) : accumulated);
    write_numbers(values, {out.mutable_data_ptr(), type_of(out), channels, 1});
    return out;
  };
  Tensor dweight = gradient(weight, sum.data()), dbias = gradient(bias, sum.data() + channels);
  return {dx, dweight, dbias, dresidual};
}

// What the samples contribute to the moments of each channel, of shape (12, C): see Contributions.
Tensor contributions(Tensor input, Tensor centre) {
  const Layout layout = layout_of(input);
  STD_TORCH_CHECK(centre.is_cpu() && centre.is_contiguous() && centre.numel() == layout.channels &&
                      centre.scalar_type() == ScalarType::Double,
                  "livella: expected a centre of float64 for each channel");
  const int64_t sizes[2] = {12, layout.channels}, strides[2] = {layout.channels, 1};
  Tensor out = new_tensor(2, sizes, strides, aoti_torch_dtype_float64());
  kernels().contributions({layout, type_of(input), input.const_data_ptr(),
                           centre.const_data_ptr<double>(), out.mutable_data_ptr<double>(),
                           threads()});
  return out;
}

void stream(const Tensor& a, const float* b, Tensor& out) {
  STD_TORCH_CHECK(a.is_contiguous() && out.is_contiguous() && a.numel() == out.numel() &&
                      a.scalar_type() == ScalarType::Float && out.scalar_type() == ScalarType::Float,
                  "livella: expected contiguous float32 tensors of one size");
  kernels().stream({a.const_data_ptr<float>(), b, out.mutable_data_ptr<float>(), a.numel(), threads()});
}

void stream_copy(Tensor a, Tensor out) { stream(a, nullptr, out); }

void stream_two_to_one(Tensor a, Tensor b, Tensor out) {
  STD_TORCH_CHECK(b.is_contiguous() && b.numel() == a.numel() && b.scalar_type() == ScalarType::Float,
                  "livella: expected contiguous float32 tensors of one size");
  stream(a, b.const_data_ptr<float>(), out);
}

std::string instruction_set() { return kernels().name; }

}  // namespace
}  // namespace livella

STABLE_TORCH_LIBRARY(livella, m) {
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
      "bool training, float? momentum, float eps, str? activation) -> (Tensor, Tensor)");
  m.def(
      "batch_norm_backward(Tensor grad, Tensor input, Tensor statistics, Tensor? weight, "
      "Tensor? bias, Tensor? saved, str? activation, bool training, bool input_grad, "
      "bool parameters_grad, bool residual_grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_inference(Tensor input, Tensor running_mean, Tensor running_var, Tensor? weight, "
      "Tensor? bias, Tensor? residual, float eps, str? activation) -> Tensor");
  m.def("contributions(Tensor input, Tensor centre) -> Tensor");
  m.def("stream_copy(Tensor a, Tensor(a!) out) -> ()");
  m.def("stream_two_to_one(Tensor a, Tensor b, Tensor(a!) out) -> ()");
  m.def("instruction_set() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(livella, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(&livella::batch_norm));
  m.impl("batch_norm_inference", TORCH_BOX(&livella::batch_norm_inference));
  m.impl("batch_norm_backward", TORCH_BOX(&livella::batch_norm_backward));
  m.impl("contributions", TORCH_BOX(&livella::contributions));
  m.impl("stream_copy", TORCH_BOX(&livella::stream_copy));
  m.impl("stream_two_to_one", TORCH_BOX(&livella::stream_two_to_one));
}

STABLE_TORCH_LIBRARY_IMPL(livella, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&livella::instruction_set));
}
