// Shared by the CPU kernels: strided arrays, the functions h, masks.
// Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, DV value dim.
// Logits, h and sums are float32; products read float32 or, from bfloat16 inputs, bfloat16.
namespace attnpass {

constexpr float NONE = -INFINITY;  // added to a logit: the position is not kept

enum Type : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BOOL = 3 };

// A tensor [B, H, T, S] or the like; a stride of 0 broadcasts; data is null where there is none.
struct Array {
  char* data;
  int64_t type;
  int64_t stride[4];

  explicit operator bool() const { return data != nullptr; }

  template <class E>
  E* at(int64_t i, int64_t j, int64_t k) const {
    return reinterpret_cast<E*>(data) + i * stride[0] + j * stride[1] + k * stride[2];
  }
};

inline int64_t up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

// Memory of one thread, 64-byte aligned, not initialised; it grows and never shrinks.
template <class E>
struct Buffer {
  std::unique_ptr<E[]> held;
  int64_t size = 0;
  E* get(int64_t n) {
    const int64_t wanted = n + 64 / sizeof(E);
    if (size < wanted) {
      held.reset(new E[wanted]);
      size = wanted;
    }
    return reinterpret_cast<E*>((reinterpret_cast<uintptr_t>(held.get()) + 63) & ~uintptr_t(63));
  }
};

constexpr int64_t MUCH = 1 << 20;  // entries

// Whether a task needs much memory: for the keys and values of a head, or for a tile of scores.
template <class P>
bool needs_much(const P& p) {
  return p.s * (p.d + p.dv) > MUCH || min(p.block_m, p.t) * min(p.block_n, p.s) > MUCH;
}

// Calls f(scratch) with memory that the thread keeps between calls or, for `much` memory, with
// memory that is freed after the call.
template <class Scratch, class F>
void with_scratch(bool much, F f) {
  if (much) {
    Scratch own;
    f(own);
  } else {
    thread_local Scratch kept;
    f(kept);
  }
}

// The functions h and their slopes.

// 2^t of t from LEAST to 127: relative error 1e-7 (Exact) or 1e-4, which bfloat16 rounds away.
template <bool Exact>
inline Vec exp2(Vec t) {
  Vec p, n;
  const Vec f = fraction(t, &n);
  if constexpr (Exact) {
    p = fma(all(1.326472720e-3f), f, all(9.671512640e-3f));
    p = fma(p, f, all(5.550733743e-2f));
    p = fma(p, f, all(2.402224209e-1f));
    p = fma(p, f, all(6.931469776e-1f));
  } else {
    p = fma(all(5.500893112e-2f), f, all(2.422109593e-1f));
    p = fma(p, f, all(6.932829271e-1f));
  }
  return scaled(fma(p, f, all(1.0f)), n);
}

// 2^t of any t up to 127; a NaN passes.
template <bool Exact>
inline Vec power(Vec t) {
  return exp2<Exact>(larger(all(LEAST), t));
}

// Every h takes t = UNIT * logit; `value` and `slope` are in terms of the logit.
template <bool Exact>
struct Sigmoid {
  static constexpr float UNIT = -1.4426950408889634f;
  static Vec value(Vec t) {
    // 2^126 and its reciprocal are normal numbers; a NaN passes
    const Vec y = all(1.0f) + power<Exact>(smaller(all(126.0f), t));
    return reciprocal<Exact>(y);
  }
  static Vec slope(Vec, Vec p) { return fnma(p, p, p); }
};

struct Relu {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return larger(all(0), x); }
  static Vec slope(Vec x, Vec) {
    return chosen(above(x, all(0)), all(1));
  }
};

struct Relu2 {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) {
    const Vec r = Relu::value(x);
    return r * r;
  }
  static Vec slope(Vec x, Vec) { return all(2) * Relu::value(x); }
};

struct Relu6 {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return smaller(all(6), Relu::value(x)); }
  static Vec slope(Vec x, Vec) {
    return chosen(above(x, all(0)) & above(all(6), x), all(1));
  }
};

struct Identity {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return x; }
  static Vec slope(Vec, Vec) { return all(1); }
};

struct Gelu {
  static constexpr float UNIT = 1;
  static Vec phi(Vec x) {
    return all(0.5f) * Vec(Library(x * all(-0.70710678f)).erfc());
  }
  static Vec value(Vec x) { return x * phi(x); }
  static Vec slope(Vec x, Vec) {
    const Vec t = all(-0.5f * 1.44269504f) * x * x;
    return fma(x * all(0.39894228f), power<true>(t), phi(x));
  }
};

struct Softplus {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) {
    // log(1 + e^x) without overflow
    const Vec e = power<true>(all(-1.44269504f) * magnitude(x));
    return larger(all(0), x) + Vec(Library(e).log1p());
  }
  static Vec slope(Vec x, Vec) {
    return Sigmoid<true>::value(x * all(Sigmoid<true>::UNIT));
  }
};

// The weights of softmax, once the log-sum-exp of their row is known and is the negative offset.
template <bool Exact>
struct Exp {
  static constexpr float UNIT = 1.4426950408889634f;
  static Vec value(Vec t) { return power<Exact>(t); }
  static Vec slope(Vec, Vec p) { return p; }
};

// The function of a numbered h; the order is that of H in activations.py. `Mul` is the type that
// products read. SOFTMAX is none of H.
constexpr int64_t SOFTMAX = 7;

template <template <class, class> class F, class Mul, class Pointer>
Pointer of(int64_t h) {
  constexpr bool exact = std::is_same_v<Mul, float>;
  static const Pointer table[] = {F<Sigmoid<exact>, Mul>::run, F<Relu, Mul>::run,
                                  F<Relu2, Mul>::run,          F<Gelu, Mul>::run,
                                  F<Softplus, Mul>::run,       F<Identity, Mul>::run,
                                  F<Relu6, Mul>::run,          F<Exp<exact>, Mul>::run};
  return table[h];
}

// Masks.

// The first n of a vector of entries of a row, `step` apart.
template <class E>
Vec stepped(const E* x, int64_t step, int64_t n) {
  if (step == 1) return get(x, first(n));
  alignas(64) float lane[LANES] = {};
  for (int64_t i = 0; i < min(n, LANES); ++i) lane[i] = float(x[i * step]);
  return load(lane);
}

// Flags are read as bytes: a bool that was a view of other bytes may hold any of them.
inline Lanes stepped(const uint8_t* x, int64_t step, int64_t n) {
  if (step == 1) return flags(x, first(n));
  uint8_t lane[LANES] = {};
  for (int64_t i = 0; i < min(n, LANES); ++i) lane[i] = x[i * step];
  return flags(lane, first(n));
}

// Writes tau * bias, and NONE where not kept, for the keys [j, j + n) of row t; NONE up to width.
inline void added(const Array& bias, const Array& keep, int64_t b, int64_t h, int64_t t, int64_t j,
                  int64_t n, int64_t width, float tau, float* out) {
  const uint8_t* kept = keep ? keep.at<uint8_t>(b, h, t) + j * keep.stride[3] : nullptr;
  auto write = [&](const auto* x) {
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t left = std::max<int64_t>(0, n - i), step = bias.stride[3];
      const Vec add = x ? stepped(x + (j + i) * step, step, left) * all(tau) : all(0);
      const Lanes live = kept ? stepped(kept + i * keep.stride[3], keep.stride[3], left)
                              : lanes(first(left));
      set(out + i, first(width - i), chosen(live, add, all(NONE)));
    }
  };
  if (!bias || bias.type == FLOAT32) write(bias ? bias.at<float>(b, h, t) : nullptr);
  else if (bias.type == BFLOAT16) write(bias.at<BFloat16>(b, h, t));
  else write(bias.at<Half>(b, h, t));
}

// Whether a row depends on the query, so that it cannot be made once per column block.
inline bool per_row(const Array& x) { return x && x.stride[2] != 0; }

// Returns 0; 1 where oneDNN, switched off, throws: the caller then takes another path; 2 where the
// caller's struct has another size.
template <class P, class F>
int guarded(const P* problem, size_t size, F run) {
  if (size != sizeof(P)) return 2;
  try {
    run(*problem);
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace attnpass
