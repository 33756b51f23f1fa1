// Attention written from SPEC.md alone, in float32, held against the golden files. 0BSD.
//   g++ -std=c++17 -O1 attention.cpp -o attention && ./attention path/to/golden
// Every mask is made twice: from the pattern's JSON, and from the text of the case.
#include <cstdio>

#include "pattern.hpp"

struct Problem {
  const golden::Case& c;
  Long b, h, g, m, n, d, e;
  std::vector<float> q, k, v;
  std::vector<int> counts;  // (b, h, m, n)
  std::vector<Long> starts, positions;
  float scale;

  explicit Problem(const golden::Case& given) : c(given) {
    b = c.size("b"), h = c.size("h"), g = c.size("g"), m = c.size("m");
    n = c.size("n"), d = c.size("d"), e = c.size("e");
    q = floats("q"), k = floats("k"), v = floats("v");
    const Json& a = c.json["attributes"];
    scale = a.find("scale") ? float(a["scale"].real()) : 1 / std::sqrt(float(d));
    const Json *start = a.find("q_start"), *length = a.find("kv_lengths");
    const Json* where = a.find("kv_positions");
    for (Long r = 0; r < b; ++r) {
      starts.push_back(start ? per_row(*start, r) : n - m);
      const Long end = length ? per_row(*length, r) : n;
      for (Long j = 0; j < n; ++j) {
        Long x = j;
        if (where) {
          const Json& first = where->items[0];
          x = (first.kind == Json::array ? where->items[r].items[j] : where->items[j]).integer();
        }
        positions.push_back(j < end ? x : -1);
      }
    }
    const Rule seen = rule(c.json["pattern"]);
    for (Long r = 0; r < b; ++r)
      for (Long a = 0; a < h; ++a)
        for (Long i = 0; i < m; ++i)
          for (Long j = 0; j < n; ++j) {
            const Long x = positions[r * n + j];
            counts.push_back(x < 0 ? 0 : seen(starts[r] + i, x, a, r));
          }
  }
  static Long per_row(const Json& x, Long r) {
    return (x.kind == Json::array ? x.items[r] : x).integer();
  }
  std::vector<float> floats(const char* name) const {
    const auto& data = c.at(name).data;
    return {data.begin(), data.end()};
  }
  // The place of (r, a, i, j) in a bias that broadcasts to (b, h, m, n).
  size_t bias_at(Long r, Long a, Long i, Long j) const {
    const auto& shape = c.at("bias").shape;
    const Long index[4] = {r, a, i, j};
    size_t at = 0;
    for (size_t x = 0; x < shape.size(); ++x)
      at = at * shape[x] + (shape[x] == 1 ? 0 : index[x + 4 - shape.size()]);
    return at;
  }
  const float* query(Long r, Long a, Long i) const { return &q[((r * h + a) * m + i) * d]; }
  size_t slot(Long r, Long a, Long j) const { return (r * g + a / (h / g)) * n + j; }
  float cap() const {
    const Json* cap = c.json["attributes"].find("softcap");
    return cap ? float(cap->real()) : 0;
  }
  float sink(Long a) const {
    const golden::Tensor* sinks = c.find("sink_logits");
    return sinks ? float(sinks->data[a]) : -INFINITY;
  }
  float dot(Long r, Long a, Long i, Long j) const {
    float sum = 0;
    for (Long x = 0; x < d; ++x) sum += query(r, a, i)[x] * k[slot(r, a, j) * d + x];
    return scale * sum;
  }
  float score(Long r, Long a, Long i, Long j) const {
    float s = dot(r, a, i, j);
    if (cap() > 0) s = cap() * std::tanh(s / cap());
    if (const golden::Tensor* bias = c.find("bias")) s += float(bias->data[bias_at(r, a, i, j)]);
    if (const golden::Tensor* slopes = c.find("alibi_slopes"))
      s -= float(slopes->data[a]) * std::fabs(float(starts[r] + i - positions[r * n + j]));
    const int times = counts[((r * h + a) * m + i) * n + j];
    return times > 1 ? s + std::log(float(times)) : s;
  }
};

struct Answer {
  std::vector<float> out, lse, dq, dk, dv, dbias, dsink;
};

struct Seen {
  Long key;
  float score;
};

// The keys of one row, in blocks of 64 with a running maximum, as kernels do.
static void forward(const Problem& p, Long r, Long a, const std::vector<Seen>& keys, Answer& to) {
  float peak = p.sink(a), total = std::isinf(peak) ? 0 : 1;
  std::vector<float> sums(p.e, 0.0f);
  for (size_t first = 0; first < keys.size(); first += 64) {
    const size_t last = std::min(keys.size(), first + 64);
    float high = peak;
    for (size_t x = first; x < last; ++x) high = std::fmax(high, keys[x].score);  // skips NaN,
    const float shrink = total > 0 || std::isnan(total) ? std::exp(peak - high) : 0;
    float part = 0;
    std::vector<float> block(p.e, 0.0f);
    for (size_t x = first; x < last; ++x) {
      const float w = std::exp(keys[x].score - high);  // which makes the row NaN here
      part += w;
      for (Long y = 0; y < p.e; ++y) block[y] += w * p.v[p.slot(r, a, keys[x].key) * p.e + y];
    }
    total = total * shrink + part;
    for (Long y = 0; y < p.e; ++y) sums[y] = sums[y] * shrink + block[y];
    peak = high;
  }
  for (float sum : sums) to.out.push_back(keys.empty() ? 0 : sum / total);
  to.lse.push_back(keys.empty() ? p.sink(a) : peak + std::log(total));
}

static void backward(const Problem& p, Long r, Long a, Long i, const std::vector<Seen>& keys,
                     Answer& to) {
  const size_t row = (r * p.h + a) * p.m + i;
  const std::vector<float> dout = p.floats("dout");
  const golden::Tensor* given = p.c.find("dlse");
  const float lse = to.lse[row], dlse = given ? float(given->data[row]) : 0;
  float mean = 0;  // D
  std::vector<float> weight, dweight;
  for (const Seen& seen : keys) {
    const float* value = &p.v[p.slot(r, a, seen.key) * p.e];
    float sum = 0;
    for (Long y = 0; y < p.e; ++y) sum += dout[row * p.e + y] * value[y];
    weight.push_back(std::exp(seen.score - lse)), dweight.push_back(sum);
    mean += weight.back() * sum;
  }
  for (size_t x = 0; x < keys.size(); ++x) {
    const size_t at = p.slot(r, a, keys[x].key);
    float ds = weight[x] * (dweight[x] - mean + dlse);
    if (p.c.find("bias")) to.dbias[p.bias_at(r, a, i, keys[x].key)] += ds;
    if (p.cap() > 0) {
      const float tanh = std::tanh(p.dot(r, a, i, keys[x].key) / p.cap());
      ds *= 1 - tanh * tanh;
    }
    for (Long y = 0; y < p.d; ++y) {
      to.dq[row * p.d + y] += p.scale * ds * p.k[at * p.d + y];
      to.dk[at * p.d + y] += p.scale * ds * p.query(r, a, i)[y];
    }
    for (Long y = 0; y < p.e; ++y) to.dv[at * p.e + y] += weight[x] * dout[row * p.e + y];
  }
  if (!std::isinf(p.sink(a))) to.dsink[a] += std::exp(p.sink(a) - lse) * (dlse - mean);
}

static Answer attention(const Problem& p) {
  Answer to;
  const bool gradients = p.c.find("dout");
  if (gradients) {
    to.dq.resize(p.q.size()), to.dk.resize(p.k.size()), to.dv.resize(p.v.size());
    to.dsink.resize(p.h);
    if (const golden::Tensor* bias = p.c.find("bias")) to.dbias.resize(bias->data.size());
  }
  for (Long r = 0; r < p.b; ++r)
    for (Long a = 0; a < p.h; ++a)
      for (Long i = 0; i < p.m; ++i) {
        std::vector<Seen> keys;
        for (Long j = 0; j < p.n; ++j)
          if (p.counts[((r * p.h + a) * p.m + i) * p.n + j] > 0) {
            const float s = p.score(r, a, i, j);
            if (s != -INFINITY) keys.push_back({j, s});
          }
        forward(p, r, a, keys, to);
        if (gradients) backward(p, r, a, i, keys, to);
      }
  return to;
}

// Whether the counts are those of the text, which has one or all batch rows and heads.
static bool same_mask(const Problem& p) {
  const std::vector<int> text = p.c.counts();
  const Json& mask = p.c.json["mask"];
  const Long rows = mask["batch"].integer(), heads = mask["heads"].integer(), pairs = p.m * p.n;
  if ((Long)text.size() != rows * heads * pairs) return false;
  for (Long r = 0; r < p.b; ++r)
    for (Long a = 0; a < p.h; ++a)
      for (Long x = 0; x < pairs; ++x) {
        const int said = text[(r % rows * heads + a % heads) * pairs + x];
        if (p.counts[(r * p.h + a) * pairs + x] != said) return false;
      }
  return true;
}

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: attention DIRECTORY\n", stderr), 2;
  int total = 0, wrong = 0;
  for (const golden::Case& c : golden::cases(argv[1])) {
    const Problem p(c);
    const Answer got = attention(p);
    std::string what = same_mask(p) ? "" : " mask";
    const std::pair<const char*, const std::vector<float>*> answers[] = {
        {"out", &got.out}, {"lse", &got.lse}, {"dq", &got.dq}, {"dk", &got.dk},
        {"dv", &got.dv}, {"dbias", &got.dbias}, {"dsink_logits", &got.dsink}};
    for (const auto& [name, values] : answers)
      if (c.find(name) && !c.passes(name, "float32", *values)) what += std::string(" ") + name;
    if (!what.empty()) std::printf("wrong: %s:%s\n", c.id.c_str(), what.c_str());
    ++total, wrong += !what.empty();
  }
  std::printf("%d cases, %d wrong\n", total, wrong);
  return wrong > 0 || total == 0;
}
