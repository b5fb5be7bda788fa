// The operators pointwise and softmax without Python, for calls that ask for nothing else: dense
// CPU tensors that `kernels/check.py` would let pass, no position terms, no gradient wanted. Every
// other call takes the way that Python registered, which checks it and says what is wrong.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/library.h>

#include <atomic>
#include <cfloat>

namespace attnpass {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

std::atomic<bool> served{true};

// Whether a tensor, if there is one, is as dense as a kernel reads it.
bool dense(const IValue& x) {
  if (x.isNone()) return true;
  const Tensor& t = x.toTensor();
  return t.layout() == at::kStrided && t.device().is_cpu() &&
         (t.numel() == 0 || t.storage().nbytes() > 0);
}

int64_t type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return FLOAT32;
    case at::kBFloat16: return BFLOAT16;
    case at::kHalf: return FLOAT16;
    case at::kBool: return BOOL;
    default: return -1;
  }
}

// A tensor of up to four axes as a kernel reads it; broadcast axes have stride 0.
Array array(const Tensor& x) {
  Array out{static_cast<char*>(x.data_ptr()), type_of(x), {0, 0, 0, 0}};
  for (int64_t i = 0; i < x.dim(); ++i)
    if (x.size(i) != 1) out.stride[4 - x.dim() + i] = x.stride(i);
  return out;
}

constexpr Array NOTHING{nullptr, 0, {0, 0, 0, 0}};

// One call, and the tensors that it made and must hold.
struct Call {
  Forward p{};
  Tensor held[6];

  // Queries, keys, values; false where the general way has to look at them.
  bool inputs(const IValue& q, const IValue& k, const IValue& v) {
    const Tensor* given[] = {&q.toTensor(), &k.toTensor(), &v.toTensor()};
    for (int i = 0; i < 3; ++i) {
      const Tensor& x = *given[i];
      if (x.dim() != 4 || type_of(x) != type_of(*given[0])) return false;
      held[i] = x.size(3) == 1 || x.stride(3) == 1 ? x : x.contiguous();
    }
    const Tensor &a = held[0], &b = held[1], &c = held[2];
    if (type_of(a) < 0 || type_of(a) == BOOL) return false;
    p.b = a.size(0), p.h = a.size(1), p.t = a.size(2), p.d = a.size(3);
    p.g = b.size(1), p.s = b.size(2), p.dv = c.size(3);
    p.q = array(a), p.k = array(b), p.v = array(c);
    return b.size(0) == p.b && c.size(0) == p.b && b.size(3) == p.d && c.size(1) == p.g &&
           c.size(2) == p.s && (p.g > 0 ? p.h % p.g == 0 : p.h == 0);
  }

  // A term that broadcasts to [B, H, T, last]; `type` is BOOL, FLOAT32 (which other floats are
  // turned into, kept in held[at]), or negative for any float.
  bool term(const IValue& x, int64_t last, int64_t type, int at, Array* out) {
    *out = NOTHING;
    if (x.isNone()) return true;
    Tensor t = x.toTensor();
    const int64_t full[] = {p.b, p.h, p.t, last};
    if (t.dim() > 4 || type_of(t) < 0 || (type_of(t) == BOOL) != (type == BOOL)) return false;
    for (int64_t i = 0; i < t.dim(); ++i)
      if (t.size(i) != 1 && t.size(i) != full[4 - t.dim() + i]) return false;
    if (type == FLOAT32 && type_of(t) != FLOAT32) held[at] = t = t.to(at::kFloat);
    *out = array(t);
    return true;
  }

  // A scale above `least` and both tiles, as `Tile` lists them: rows, columns, -, -, heads, ...
  bool launch(const IValue& scale, float least, const IValue& causal, const IValue& tile,
              const IValue& grad_tile) {
    p.scale = scale.toDouble(), p.causal = causal.toBool();
    if (!(p.scale > least && p.scale <= FLT_MAX)) return false;
    for (const IValue* x : {&tile, &grad_tile}) {
      if (!x->isIntList()) return false;
      const auto numbers = x->toIntList();
      if (numbers.size() < 5 || numbers.size() > 7) return false;
      for (size_t i = 0; i < numbers.size(); ++i) {
        const int64_t n = numbers[i];
        if (i < 5 ? n < 1 || n > 65536 : n < 0 || n > 1) return false;
      }
    }
    const auto numbers = tile.toIntList();
    p.block_m = numbers[0], p.block_n = up(numbers[1], 32), p.heads = numbers[4];
    return true;
  }

  // Runs the kernel; the output is [B, H, T, dv], heads next to features in memory. Axes without
  // elements have the strides that a traced call promises.
  bool run(Tensor* out) {
    const auto options = held[0].options();
    const int64_t one = 1, head = std::max(p.dv, one), row = std::max(p.h, one) * head;
    *out = at::empty_strided({p.b, p.h, p.t, p.dv}, {std::max(p.t, one) * row, head, row, 1},
                             options);
    p.out = array(*out);
    return pointwise(&p, sizeof(p)) == 0;
  }
};

bool all_dense(c10::ArrayRef<IValue> x, std::initializer_list<int> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](int i) { return dense(x[i]); });
}

// softmax(q, k, v, bias, keep, scale, causal, tile, grad_tile) -> (out, lse)
bool softmax(c10::ArrayRef<IValue> x, Stack* out) {
  Call call;
  Forward& p = call.p;
  if (!all_dense(x, {0, 1, 2, 3, 4}) || !call.inputs(x[0], x[1], x[2]) ||
      !call.term(x[3], p.s, -1, 3, &p.bias) || !call.term(x[4], p.s, BOOL, 3, &p.keep) ||
      !call.launch(x[5], 0, x[6], x[7], x[8]))
    return false;
  Tensor found;
  Tensor lse = at::empty({p.b, p.h, p.t}, at::kFloat);
  p.function = SOFTMAX;
  p.lse = Array{static_cast<char*>(lse.data_ptr()), FLOAT32, {p.h * p.t, p.t, 1, 0}};
  if (!call.run(&found)) return false;
  out->emplace_back(std::move(found));
  out->emplace_back(std::move(lse));
  return true;
}

// h by its name; the order is that of H in activations.py.
int64_t numbered(const std::string& h) {
  static const char* const names[] = {"sigmoid", "relu", "relu2", "gelu", "softplus", "identity",
                                      "relu6"};
  for (int i = 0; i < SOFTMAX; ++i)
    if (h == names[i]) return i;
  return -1;
}

// pointwise(q, k, v, bias, keep, tau, offset, gain, scale, h, causal, tile, grad_tile, slopes,
//           lengths, window) -> out
bool pointwise_forward(c10::ArrayRef<IValue> x, Stack* out) {
  Call call;
  Forward& p = call.p;
  p.function = numbered(x[9].toStringRef());
  if (p.function < 0 || !x[13].isNone() || !x[14].isNone() || !x[15].isInt() || x[15].toInt())
    return false;
  if (!all_dense(x, {0, 1, 2, 3, 4, 5, 6, 7}) || !call.inputs(x[0], x[1], x[2]) ||
      !call.term(x[3], p.s, -1, 3, &p.bias) || !call.term(x[4], p.s, BOOL, 3, &p.keep) ||
      !call.term(x[6], 1, FLOAT32, 4, &p.offset) || !call.term(x[7], 1, FLOAT32, 5, &p.gain) ||
      !call.launch(x[8], -FLT_MAX, x[10], x[11], x[12]))
    return false;
  if (!x[5].isNone()) {
    const Tensor& tau = x[5].toTensor();
    if (tau.dim() != 1 || tau.size(0) != p.h || type_of(tau) < 0 || type_of(tau) == BOOL)
      return false;
    call.held[3] = tau.to(at::kFloat);
    p.tau = array(call.held[3]);
  }
  Tensor found;
  if (!call.run(&found)) return false;
  out->emplace_back(std::move(found));
  return true;
}

using Run = bool (*)(c10::ArrayRef<IValue>, Stack*);

// A boxed kernel for CPU tensors.
template <Run run, size_t arguments>
void on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  Stack found;
  const bool forward_mode = torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr;
  if (served && !forward_mode && run(torch::jit::last(*stack, arguments), &found)) {
    torch::jit::drop(*stack, arguments);
    for (IValue& x : found) stack->push_back(std::move(x));
  } else {
    op.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack);
  }
}

// Runs what needs no gradient, or passes it on; the rest goes to Python's formula.
template <Run run, size_t arguments>
void autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const bool grads = at::GradMode::is_enabled();
  bool plain = served;
  for (const IValue& x : torch::jit::last(*stack, arguments)) {
    if (x.isTensor()) plain &= !(grads && x.toTensor().requires_grad());
  }
  const c10::DispatchKeySet rest = keys & c10::after_ADInplaceOrView_keyset;
  // fake tensors, modes and the like stand between
  if (plain && rest.highestPriorityTypeId() == c10::DispatchKey::CPU) on_cpu<run, arguments>(op, stack);
  else if (plain) op.redispatchBoxed(rest, stack);
  else op.callBoxedForDispatchKey(c10::DispatchKey::Autograd, *stack);
}

}  // namespace attnpass

TORCH_LIBRARY_IMPL(attnpass, CPU, m) {
  using namespace attnpass;
  m.impl("softmax", torch::CppFunction::makeFromBoxedFunction<&on_cpu<&softmax, 9>>());
  m.impl("pointwise", torch::CppFunction::makeFromBoxedFunction<&on_cpu<&pointwise_forward, 16>>());
}

TORCH_LIBRARY_IMPL(attnpass, AutogradCPU, m) {
  using namespace attnpass;
  m.impl("softmax", torch::CppFunction::makeFromBoxedFunction<&autograd<&softmax, 9>>());
  m.impl("pointwise", torch::CppFunction::makeFromBoxedFunction<&autograd<&pointwise_forward, 16>>());
}

// Off: every call takes Python's way.
extern "C" void serve(int on) { attnpass::served = on != 0; }
