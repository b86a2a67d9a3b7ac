// The operators, on LibTorch's stable ABI: one build serves every torch from 2.10 on.
//
// Arguments are checked here only as far as memory is at stake; functional.py explains to the user.
#include <cstdlib>
#include <string>
#include <tuple>

#include "parts.h"
#include "tensors.h"

namespace livella {
namespace {

const InstructionSet& chosen_set() {
  static const InstructionSet* chosen = choose_instruction_set(std::getenv("LIVELLA_ISA"));
  STD_TORCH_CHECK(chosen != nullptr, "livella: LIVELLA_ISA names no instruction set of this machine; ",
                  "expected avx512, avx2 or portable, as far as the processor has them");
  return *chosen;
}

const Kernels& kernels(Type type) { return *chosen_set().kernels[static_cast<int>(type)]; }

void run_on_threads(int64_t size, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    body(context, begin, end);
  });
}

Threads threads() { return {run_on_threads, static_cast<int64_t>(torch::stable::get_num_threads())}; }

Activation activation_of(const std::optional<std::string>& name) {
  if (!name) return Activation::none;
  if (*name == "relu") return Activation::relu;
  if (*name == "relu6") return Activation::relu6;
  if (*name == "leaky_relu") return Activation::leaky_relu;
  if (*name == "silu") return Activation::silu;
  if (*name == "hardswish") return Activation::hardswish;
  STD_TORCH_CHECK(false, "livella: unknown activation ", *name);
}

Parts parts_of(const Layout& layout, std::optional<int64_t> ghost_size) {
  STD_TORCH_CHECK(!ghost_size || *ghost_size >= 1, "livella: expected a ghost_size of one or more");
  return Parts(layout, ghost_size);
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

// Limits of batch renormalization, and the running averages of before the batch, as it takes them.
struct Limited {
  std::vector<double> averages;
  Correction correction;

  Limited(const Tensor& limits, const Numbers& mean, const Numbers& variance, double* r)
      : averages(2 * mean.size) {
    STD_TORCH_CHECK(limits.is_cpu() && limits.is_contiguous() && limits.numel() == 2 &&
                        limits.scalar_type() == ScalarType::Double,
                    "livella: expected limits of two float64 numbers on the CPU");
    const double* max = limits.const_data_ptr<double>();
    STD_TORCH_CHECK(max[0] >= 1 && max[1] >= 0,
                    "livella: expected limits r_max of one or more and d_max not below zero");
    double* before = averages.data();
    read_numbers(mean, before), read_numbers(variance, before + mean.size);
    correction = {max[0], max[1], before, before + mean.size, r, r + mean.size};
  }
};

bool worth_streaming(const Tensor& out) {
  return out.numel() * static_cast<int64_t>(out.element_size()) >= kStreamBytes;
}

// With y its statistics: μ and σ⁻¹ of each part of the batch, then r and d where there are limits.
std::tuple<Tensor, Tensor> batch_norm(Tensor input, Optional weight, Optional bias, Optional residual,
                                      Optional running_mean, Optional running_var,
                                      Optional num_batches_tracked, bool training,
                                      std::optional<double> momentum, double eps,
                                      std::optional<std::string> activation,
                                      std::optional<int64_t> ghost_size, Optional limits) {
  const Layout layout = layout_of(input);
  const int64_t channels = layout.channels;
  if (residual) check_like(*residual, input, "a residual");
  STD_TORCH_CHECK(training || (running_mean && running_var),
                  "livella: expected running_mean and running_var in evaluation");
  STD_TORCH_CHECK(eps >= 0, "livella: expected eps not below zero");
  STD_TORCH_CHECK(!limits || (training && running_mean && !ghost_size),
                  "livella: expected limits in training, with running averages and the batch as one");
  STD_TORCH_CHECK(training || !ghost_size, "livella: expected a ghost_size in training only");
  const Parts parts = parts_of(layout, ghost_size);
  Numbers averages[2] = {};
  if (running_mean) averages[0] = per_channel(*running_mean, input, "running_mean");
  if (running_var) averages[1] = per_channel(*running_var, input, "running_var");
  if (training) check_training(parts.layout(0), eps, averages[0], averages[1]);
  if (num_batches_tracked)
    STD_TORCH_CHECK(num_batches_tracked->is_cpu() && num_batches_tracked->numel() == 1 &&
                        num_batches_tracked->scalar_type() == ScalarType::Long,
                    "livella: expected num_batches_tracked to be one int64 on the CPU");
  const bool updates = training && running_mean;
  if (updates) share(momentum, num_batches_tracked);  // complains before anything is changed
  const Activation act = activation_of(activation);

  const auto gamma = read(weight, input, 1, "weight");
  const auto beta = read(bias, input, 0, "bias");
  Tensor output = new_like(input);
  const int64_t rows = limits ? 4 : 2, numbers = rows * channels;
  const int64_t sizes[2] = {parts.count * rows, channels}, strides[2] = {channels, 1};
  Tensor statistics = new_tensor(2, sizes, strides, aoti_torch_dtype_float64());
  double* const means = statistics.mutable_data_ptr<double>();
  std::vector<double> variances(parts.count * channels);
  if (!training) read_numbers(averages[0], means), read_numbers(averages[1], variances.data());
  std::optional<Limited> limited;
  if (limits) limited.emplace(*limits, averages[0], averages[1], means + 2 * channels);
  advise_huge_pages(output.mutable_data_ptr(), output.numel() * output.element_size());

  const int64_t element = input.element_size();
  const auto* x = static_cast<const char*>(input.const_data_ptr());
  const auto* r = static_cast<const char*>(residual ? residual->const_data_ptr() : nullptr);
  auto* y = static_cast<char*>(output.mutable_data_ptr());
  const Type type = type_of(input);
  const bool streams = worth_streaming(output);
  parts.each(threads(), [&](int64_t part, const Threads& threads) {
    double* mean = means + part * numbers;
    kernels(type).forward({parts.layout(part), act, parts.start(x, part, element),
                       parts.start(r, part, element), parts.start(y, part, element), gamma.data(),
                       beta.data(), mean, variances.data() + part * channels, mean + channels,
                       limited ? &limited->correction : nullptr, eps, training, streams, threads});
  });

  for (int64_t part = 0; training && part < parts.count; part++) {
    const double count = static_cast<double>(parts.layout(part).count());
    if (updates) {
      const double taken = share(momentum, num_batches_tracked);
      blend_numbers(averages[0], means + part * numbers, 1, taken);
      blend_numbers(averages[1], variances.data() + part * channels, count / (count - 1), taken);
    }
    if (num_batches_tracked) ++*num_batches_tracked->mutable_data_ptr<int64_t>();
  }
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
  const Type type = type_of(input);
  kernels(type).forward({layout, act, input.const_data_ptr(),
                     residual ? residual->const_data_ptr() : nullptr, output.mutable_data_ptr(),
                     gamma.data(), beta.data(), mu.data(), variance.data(), variance.data(), nullptr,
                     eps, false, worth_streaming(output), threads()});
  return output;
}

// The gradients of input, weight, bias and residual; empty where not asked for, or, for the residual
// without an activation, the gradient of the output itself.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_backward(
    Tensor grad, Tensor input, Tensor statistics, Optional weight, Optional bias, Optional saved,
    std::optional<std::string> activation, bool training, bool input_grad, bool parameters_grad,
    bool residual_grad, std::optional<int64_t> ghost_size) {
  const Layout layout = layout_of(input);
  const int64_t channels = layout.channels;
  check_like(grad, input, "a gradient");
  if (saved) check_like(*saved, input, "what was saved");
  const Parts parts = parts_of(layout, ghost_size);
  const bool corrected = !ghost_size && statistics.dim() == 2 && statistics.size(0) == 4;
  STD_TORCH_CHECK(statistics.is_cpu() && statistics.is_contiguous() &&
                      statistics.numel() == (corrected ? 4 : 2 * parts.count) * channels &&
                      statistics.scalar_type() == ScalarType::Double,
                  "livella: expected statistics of shape (2, C) for each part, or (4, C), in float64");
  const Activation act = activation_of(activation);
  const bool keep_dz = residual_grad && act != Activation::none;
  const bool writes = input_grad || keep_dz;
  auto gamma = read(weight, input, 1, "weight"), beta = read(bias, input, 0, "bias");
  const double* const means = statistics.const_data_ptr<double>();
  const double *r = means + 2 * channels, *d = r + channels;  // if corrected
  for (int64_t c = 0; corrected && c < channels; c++) beta[c] += gamma[c] * d[c], gamma[c] *= r[c];
  const auto none = [&] { return new_vector(0, dtype_of(input)); };
  Tensor dx = writes ? new_like(input) : none();
  Tensor dresidual = keep_dz ? new_like(input) : none();
  const bool sums = parameters_grad || training;
  std::vector<double> sum(sums ? parts.count * 2 * channels : 0);
  if (writes) advise_huge_pages(dx.mutable_data_ptr(), dx.numel() * dx.element_size());
  if (keep_dz)
    advise_huge_pages(dresidual.mutable_data_ptr(), dresidual.numel() * dresidual.element_size());

  const int64_t element = input.element_size();
  const auto read_from = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const char *x = read_from(input), *dy = read_from(grad), *s = saved ? read_from(*saved) : nullptr;
  char* to = static_cast<char*>(writes ? dx.mutable_data_ptr() : nullptr);
  char* dr = static_cast<char*>(keep_dz ? dresidual.mutable_data_ptr() : nullptr);
  const Type type = type_of(input);
  const bool streams = worth_streaming(input);
  parts.each(threads(), [&](int64_t part, const Threads& threads) {
    const auto at = [&](auto* memory) { return parts.start(memory, part, element); };
    const double* mean = means + part * 2 * channels;
    double* total = sums ? sum.data() + part * 2 * channels : nullptr;
    kernels(type).backward({parts.layout(part), act, at(x), at(dy), at(s), at(to), at(dr),
                        gamma.data(), beta.data(), mean, mean + channels, total,
                        sums ? total + channels : nullptr, training, streams, threads});
  });
  for (int64_t part = 1; sums && part < parts.count; part++)
    for (int64_t i = 0; i < 2 * channels; i++) sum[i] += sum[part * 2 * channels + i];
  for (int64_t c = 0; corrected && sums && c < channels; c++)
    sum[c] = r[c] * sum[c] + d[c] * sum[channels + c];

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
  kernels(type_of(input))
      .contributions({layout, input.const_data_ptr(), centre.const_data_ptr<double>(),
                      out.mutable_data_ptr<double>(), threads()});
  return out;
}

void stream(const Tensor& a, const float* b, Tensor& out) {
  STD_TORCH_CHECK(a.is_contiguous() && out.is_contiguous() && a.numel() == out.numel() &&
                      a.scalar_type() == ScalarType::Float && out.scalar_type() == ScalarType::Float,
                  "livella: expected contiguous float32 tensors of one size");
  kernels(Type::f32).stream(
      {a.const_data_ptr<float>(), b, out.mutable_data_ptr<float>(), a.numel(), threads()});
}

void stream_copy(Tensor a, Tensor out) { stream(a, nullptr, out); }

void stream_two_to_one(Tensor a, Tensor b, Tensor out) {
  STD_TORCH_CHECK(b.is_contiguous() && b.numel() == a.numel() && b.scalar_type() == ScalarType::Float,
                  "livella: expected contiguous float32 tensors of one size");
  stream(a, b.const_data_ptr<float>(), out);
}

std::string instruction_set() { return chosen_set().name; }

}  // namespace
}  // namespace livella

STABLE_TORCH_LIBRARY(livella, m) {
  m.def(
      "batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
      "bool training, float? momentum, float eps, str? activation, int? ghost_size=None, "
      "Tensor? limits=None) -> (Tensor, Tensor)");
  m.def(
      "batch_norm_backward(Tensor grad, Tensor input, Tensor statistics, Tensor? weight, "
      "Tensor? bias, Tensor? saved, str? activation, bool training, bool input_grad, "
      "bool parameters_grad, bool residual_grad, int? ghost_size=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
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
