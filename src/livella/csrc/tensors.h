// Tensors of torch as the kernels take them: memory in one of two layouts, numbers of one a channel.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace livella {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline Type type_of(const Tensor& t) {
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

// Whether memory holds the channels innermost, then the positions, then the samples, without gaps.
inline bool is_channels_last(const Tensor& x) {
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

inline Layout layout_of(const Tensor& x) {
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

inline void check_like(const Tensor& t, const Tensor& x, const char* name) {
  bool same = t.is_cpu() && t.dim() == x.dim() && t.scalar_type() == x.scalar_type();
  for (int64_t d = 0; same && d < x.dim(); d++)
    same = t.size(d) == x.size(d) && (t.size(d) == 1 || t.stride(d) == x.stride(d));
  STD_TORCH_CHECK(same, "livella: expected ", name,
                  " of the input's shape, dtype and memory format; make it so, for example with "
                  "contiguous(memory_format=...)");
}

// New tensors by the shortest way there is: a call on a small input costs little else.
inline Tensor new_tensor(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

inline int32_t dtype_of(const Tensor& x) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

inline Tensor new_like(const Tensor& x) {
  return new_tensor(x.dim(), x.sizes().data(), x.strides().data(), dtype_of(x));
}

inline Tensor new_vector(int64_t size, int32_t dtype) {
  const int64_t stride = 1;
  return new_tensor(1, &size, &stride, dtype);
}

// Numbers of one a channel, in the type of x or the one it is computed in.
inline Numbers per_channel(const Tensor& t, const Tensor& x, const char* name) {
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) == channels, "livella: expected ", name,
                  " on the CPU, of shape (", channels, ",)");
  const Type type = type_of(t);
  const bool accumulated = type_of(x) != Type::f64 && type == Type::f32;
  STD_TORCH_CHECK(type == type_of(x) || accumulated, "livella: expected ", name,
                  " in the dtype of the input, or float32");
  return {const_cast<void*>(t.const_data_ptr()), type, channels, t.stride(0)};
}

inline std::vector<double> read(const Optional& t, const Tensor& x, double otherwise, const char* name) {
  std::vector<double> out(x.size(1), otherwise);
  if (t) read_numbers(per_channel(*t, x, name), out.data());
  return out;
}

// Whether any element of both is the same one: they may lie in one another's gaps.
inline bool share_memory(const Numbers& a, const Numbers& b) {
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

}  // namespace livella
