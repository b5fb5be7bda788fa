// Hydra: out = gain * q^ * sum_s (k^ * v), x^ = x over its norm across all heads' features.
// Memory bandwidth limits the speed: k and v are read once (twice where causal chunks need the
// sums before them), then q. A task is one chunk of tokens of one batch item; sums are kept per
// chunk.

namespace attnpass {

constexpr int64_t PADDED = 16;  // features of a row of sums are a multiple of this

struct Problem {
  int64_t b, h, t, s, d, causal, chunks;
  double eps;
  Array q, k, v, keep, gain, out;                 // gain [1, H, 1, D], keep [B, 1, 1, S]
  Array sums, grad_sums, grad, dq, dk, dv, dgain;  // sums, grad_sums, dgain [B, C, H, D'] float32

  int64_t padded() const { return up(d, PADDED); }
  int64_t features() const { return h * padded(); }
  int64_t from(int64_t n, int64_t chunk) const { return n * chunk / chunks; }
  float* part(const Array& x, int64_t item, int64_t chunk) const {
    return reinterpret_cast<float*>(x.data) + (item * chunks + chunk) * features();
  }
  bool kept(int64_t item, int64_t token) const {
    return !keep || keep.at<uint8_t>(item, 0, 0)[token * keep.stride[3]] != 0;
  }
  Vec gains(int64_t head, int64_t c, Part on) const {
    return gain ? get(gain.at<float>(0, head, 0) + c, on) : all(1);
  }
};

// The type of the inputs; where features fill all of the vectors that are read side by side, no
// lane is ever masked.
template <class T, bool Whole>
struct Kind {
  using In = T;
  static Part part(int64_t n) { return first(Whole ? LANES : n); }
};

// f(head, feature, lanes, place in a row of sums) for every vector of one token.
template <class K, class F>
inline void each(const Problem& p, F f) {
  for (int64_t head = 0; head < p.h; ++head)
    for (int64_t c = 0; c < p.d; c += LANES) f(head, c, K::part(p.d - c), head * p.padded() + c);
}

// Tokens that are worked on side by side, so that their sums do not wait for each other.
constexpr int64_t TOKENS = 4;

// The rows of one head of `TOKENS` tokens; a token beyond the last repeats it.
template <class K>
struct Rows {
  typename K::In* row[TOKENS];
  Rows(const Array& x, int64_t item, int64_t head, int64_t token, int64_t count) {
    for (int64_t i = 0; i < TOKENS; ++i) row[i] = x.at<typename K::In>(item, head, token + min(i, count - 1));
  }
};

struct Norms {
  float r[TOKENS];     // 1 / sqrt(max(|x|^2, eps))
  bool above[TOKENS];  // the norm is no constant
};

// Norms of `x`, read row by row. Brought near meanwhile: the same tokens of `next`, and the tokens
// of `x` that come after these.
template <class K>
Norms norms(const Problem& p, const Array& x, const Array& next, int64_t item, int64_t token,
            int64_t count) {
  Norms out{};
  for (int64_t i = 0; i < count; ++i) {
    Vec sum[4] = {all(0), all(0), all(0), all(0)};
    for (int64_t head = 0; head < p.h; ++head) {
      const typename K::In* row = x.at<typename K::In>(item, head, token + i);
      const typename K::In* ahead = next ? next.at<typename K::In>(item, head, token + i) : row;
      for (int64_t c = 0; c < p.d; c += 4 * LANES)
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t at = c + j * LANES;
          const Vec y = get(row + at, K::part(p.d - at));
          sum[j] = fma(y, y, sum[j]);
          soon(ahead + min(at, p.d - 1));
          later(row + TOKENS * x.stride[2] + at);
        }
    }
    const Vec total = sum[0] + sum[1] + sum[2] + sum[3];
    const float square = sum_of(total);
    out.r[i] = 1.0f / std::sqrt(std::max(square, float(p.eps)));
    out.above[i] = square >= float(p.eps);
  }
  return out;
}

template <class K>
struct Norm {
  float r;
  bool above;
  Norm(const Problem& p, const Array& x, int64_t item, int64_t token) {
    const Norms n = norms<K>(p, x, Array{}, item, token, 1);
    r = n.r[0], above = n.above[0];
  }
};

// total += r * x * y over the kept ones of `count` tokens, over all features; r the norm of x.
template <class K>
void accumulate(const Problem& p, const Array& x, const Array& y, bool masked, int64_t item,
                int64_t token, int64_t count, float* total) {
  const Norms n = norms<K>(p, x, y, item, token, count);
  Lanes seen[TOKENS];
  for (int64_t i = 0; i < TOKENS; ++i)
    seen[i] = lanes(first(i < count && (!masked || p.kept(item, token + i)) ? LANES : 0));
  for (int64_t head = 0; head < p.h; ++head, total += p.padded()) {
    const Rows<K> a(x, item, head, token, count), b(y, item, head, token, count);
    for (int64_t c = 0; c < p.d; c += LANES) {
      const Part on = K::part(p.d - c);
      Vec sum = load(total + c);
      for (int64_t i = 0; i < TOKENS; ++i) {
        const Vec xy = get(a.row[i] + c, on) * get(b.row[i] + c, on);
        sum = fma(seen[i], xy, all(n.r[i]), sum);
      }
      store(total + c, sum);
    }
  }
}

// The sum over a chunk's n tokens of r * x * y, r the norm of x.
template <class K>
void chunk_sum(const Problem& p, const Array& x, const Array& y, int64_t n, bool masked,
               int64_t item, int64_t chunk, float* total) {
  std::fill_n(total, p.features(), 0.0f);
  const int64_t stop = p.from(n, chunk + 1);
  for (int64_t i = p.from(n, chunk); i < stop; i += TOKENS)
    accumulate<K>(p, x, y, masked, item, i, min(TOKENS, stop - i), total);
}

// Sums per chunk become what a chunk starts from: the whole sum, or what lies before (after) it.
void gather(const Problem& p, const Array& sums, int64_t item, bool reversed) {
  for (int64_t f = 0; f < p.features(); ++f) {
    float total = 0;
    for (int64_t i = 0; i < p.chunks; ++i) {
      float& one = p.part(sums, item, reversed ? p.chunks - 1 - i : i)[f];
      const float own = one;
      if (p.causal) one = total;
      total += own;
    }
    if (!p.causal)
      for (int64_t i = 0; i < p.chunks; ++i) p.part(sums, item, i)[f] = total;
  }
}

template <class F>
void tasks(const Problem& p, F f) {
  at::parallel_for(0, p.b * p.chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / p.chunks, i % p.chunks);
  });
}

template <class K>
void sums(const Problem& p, bool gradients) {
  tasks(p, [&](int64_t item, int64_t chunk) {
    chunk_sum<K>(p, p.k, p.v, p.s, true, item, chunk, p.part(p.sums, item, chunk));
    if (gradients)
      chunk_sum<K>(p, p.q, p.grad, p.t, false, item, chunk, p.part(p.grad_sums, item, chunk));
  });
  for (int64_t item = 0; item < p.b; ++item) {
    gather(p, p.sums, item, false);
    if (gradients) gather(p, p.grad_sums, item, true);
  }
}

// out = gain * q^ * total of `count` tokens.
template <class K>
void write(const Problem& p, int64_t item, int64_t token, int64_t count, const float* total) {
  const Norms n = norms<K>(p, p.q, p.out, item, token, count);
  const bool gained = bool(p.gain);
  for (int64_t head = 0; head < p.h; ++head, total += p.padded()) {
    const Rows<K> q(p.q, item, head, token, count), out(p.out, item, head, token, count);
    const float* gain = gained ? p.gain.at<float>(0, head, 0) : nullptr;
    for (int64_t c = 0, d = p.d; c < d; c += LANES) {
      const Part on = K::part(d - c);
      const Vec sum = gained ? load(total + c) * get(gain + c, on) : load(total + c);
      for (int64_t i = 0; i < TOKENS; ++i)
        if (i < count)
          set(out.row[i] + c, on, get(q.row[i] + c, on) * all(n.r[i]) * sum);
    }
  }
}

template <class K>
void forward(const Problem& p) {
  if (p.causal && p.chunks == 1) std::fill_n(p.part(p.sums, 0, 0), p.b * p.features(), 0.0f);
  else sums<K>(p, false);
  tasks(p, [&](int64_t item, int64_t chunk) {
    float* total = p.part(p.sums, item, chunk);
    // a causal token sees its own sum: one at a time
    const int64_t stop = p.from(p.t, chunk + 1), step = p.causal ? 1 : TOKENS;
    for (int64_t i = p.from(p.t, chunk); i < stop; i += step) {
      const int64_t count = min(step, stop - i);
      if (p.causal) accumulate<K>(p, p.k, p.v, true, item, i, 1, total);
      write<K>(p, item, i, count, total);
    }
  });
}

// dx of one token from dx^ = factor(head, c, lanes, place): (dx^ - x^ (x^ . dx^)) / |x|.
template <class K, class F>
void unit_gradient(const Problem& p, const Array& x, const Array& dx, int64_t item, int64_t token,
                   F factor) {
  const Norm<K> n(p, x, item, token);
  Vec dot = all(0);
  each<K>(p, [&](int64_t head, int64_t c, Part on, int64_t at) {
    dot = fma(get(x.at<typename K::In>(item, head, token) + c, on), factor(head, c, on, at), dot);
  });
  const Vec radial = all(n.above ? sum_of(dot) * n.r * n.r : 0.0f), r = all(n.r);
  each<K>(p, [&](int64_t head, int64_t c, Part on, int64_t at) {
    const Vec y = get(x.at<typename K::In>(item, head, token) + c, on);
    const Vec d = fnma(y, radial, factor(head, c, on, at));
    set(dx.at<typename K::In>(item, head, token) + c, on, d * r);
  });
}

// Queries of a chunk in the order of time: dq, and what the gain gets.
template <class K>
void queries(const Problem& p, int64_t item, int64_t chunk) {
  float *total = p.part(p.sums, item, chunk), *dgain = p.part(p.dgain, item, chunk);
  std::fill_n(dgain, p.features(), 0.0f);
  for (int64_t i = p.from(p.t, chunk); i < p.from(p.t, chunk + 1); ++i) {
    if (p.causal) accumulate<K>(p, p.k, p.v, true, item, i, 1, total);
    unit_gradient<K>(p, p.q, p.dq, item, i, [&](int64_t head, int64_t c, Part on, int64_t at) {
      const Vec g = get(p.grad.at<typename K::In>(item, head, i) + c, on) * load(total + at);
      return g * p.gains(head, c, on);
    });
    const Vec r = all(Norm<K>(p, p.q, item, i).r);
    each<K>(p, [&](int64_t head, int64_t c, Part on, int64_t at) {
      const Vec g = get(p.grad.at<typename K::In>(item, head, i) + c, on) * load(total + at);
      const Vec q = get(p.q.at<typename K::In>(item, head, i) + c, on) * r;
      store(dgain + at, fma(g, q, load(dgain + at)));
    });
  }
}

// Keys of a chunk against the order of time: dk and dv.
template <class K>
void keys(const Problem& p, int64_t item, int64_t chunk) {
  float* after = p.part(p.grad_sums, item, chunk);
  for (int64_t i = p.from(p.s, chunk + 1) - 1; i >= p.from(p.s, chunk); --i) {
    if (p.causal) accumulate<K>(p, p.q, p.grad, false, item, i, 1, after);
    const float kept = p.kept(item, i) ? 1.0f : 0.0f;
    auto dkv = [&](int64_t head, int64_t c, Part on, int64_t at) {
      return load(after + at) * p.gains(head, c, on) * all(kept);
    };
    unit_gradient<K>(p, p.k, p.dk, item, i, [&](int64_t head, int64_t c, Part on, int64_t at) {
      return dkv(head, c, on, at) * get(p.v.at<typename K::In>(item, head, i) + c, on);
    });
    const Vec r = all(Norm<K>(p, p.k, item, i).r);
    each<K>(p, [&](int64_t head, int64_t c, Part on, int64_t at) {
      const Vec k = get(p.k.at<typename K::In>(item, head, i) + c, on) * r;
      set(p.dv.at<typename K::In>(item, head, i) + c, on, dkv(head, c, on, at) * k);
    });
  }
}

template <class K>
void backward(const Problem& p) {
  sums<K>(p, true);
  tasks(p, [&](int64_t item, int64_t chunk) {
    queries<K>(p, item, chunk);
    keys<K>(p, item, chunk);
  });
}

// Heads whose features lie side by side are as good as one head.
Problem merged(Problem p) {
  const Array* arrays[] = {&p.q, &p.k, &p.v, &p.gain, &p.out, &p.grad, &p.dq, &p.dk, &p.dv};
  bool apart = p.d % PADDED != 0;
  for (const Array* x : arrays) apart = apart || (*x && x->stride[1] != p.d);
  if (!apart) p.d *= p.h, p.h = 1;
  return p;
}

// f(problem, Kind) for the dtype, and for whether features fill all vectors: `norms` reads them
// four vectors at a time.
template <class F>
void by_kind(const Problem& given, F f) {
  const Problem p = merged(given);
  const bool whole = p.d % (4 * LANES) == 0;
  if (p.q.type == FLOAT32) whole ? f(p, Kind<float, true>()) : f(p, Kind<float, false>());
  else if (p.q.type == FLOAT16) whole ? f(p, Kind<Half, true>()) : f(p, Kind<Half, false>());
  else whole ? f(p, Kind<BFloat16, true>()) : f(p, Kind<BFloat16, false>());
}

}  // namespace attnpass

extern "C" int hydra(const attnpass::Problem* problem, size_t size) {
  return attnpass::guarded(problem, size, [](const auto& given) {
    attnpass::by_kind(given, [](const auto& p, auto x) { attnpass::forward<decltype(x)>(p); });
  });
}

extern "C" int hydra_backward(const attnpass::Problem* problem, size_t size) {
  return attnpass::guarded(problem, size, [](const auto& given) {
    attnpass::by_kind(given, [](const auto& p, auto x) { attnpass::backward<decltype(x)>(p); });
  });
}
