// Section 4 of SPEC.md: a pattern's JSON becomes a function of two positions. 0BSD.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <set>

#include "../readers/golden.hpp"

using golden::Json;
using Long = int64_t;
using Word = uint64_t;
using Rule = std::function<int(Long q, Long k, Long head, Long batch)>;  // how often a pair counts

inline Long floor_div(Long x, Long y) { return x / y - (x % y < 0); }
inline Long mod(Long x, Long y) { return x - floor_div(x, y) * y; }

inline std::set<Long> members(const Json& json) {
  std::set<Long> found;
  for (const Json& run : json["set"].items)
    for (Long x = run.items[0].integer(); x < run.items[1].integer(); x += run.items[2].integer())
      found.insert(x);
  return found;
}

inline std::vector<Long> runs(const Json& json) {
  std::vector<Long> found;
  for (const Json& run : json.items)
    found.insert(found.end(), run.items[1].integer(), run.items[0].integer());
  return found;
}

struct Table {
  std::vector<Long> values;
  Long fill;
  explicit Table(const Json& json) : values(runs(json["table"])), fill(json["fill"].integer()) {}
  Long operator[](Long x) const { return x < 0 || x >= (Long)values.size() ? fill : values[x]; }
};

inline std::set<std::pair<Long, Long>> relation(const Json& json) {
  std::set<std::pair<Long, Long>> found;
  const std::vector<Long> counts = runs(json["rows"]), steps = runs(json["key_steps"]);
  Long key = 0, at = 0;
  for (size_t row = 0; row < counts.size(); ++row)
    for (Long i = 0; i < counts[row]; ++i) found.emplace(row, key += steps[at++]);
  return found;
}

inline Word mix(Word x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline std::set<Long> draw(Long q, Long count, Word seed, Long length, bool causal,
                           const Rule& no) {
  std::set<Long> found;
  if (q < 0 || q >= length) return found;
  const Word limit = causal ? q + 1 : length, base = mix(mix(seed) ^ (Word)q);
  for (Word t = 0; t < 8 * (Word)count + 64 && (Long)found.size() < count; ++t) {
    const Long key = mix(base + t) % limit;
    if (!no(q, key, 0, 0)) found.insert(key);
  }
  if ((Long)found.size() == count) return found;
  std::vector<std::pair<Word, Long>> all;
  for (Word key = 0; key < limit; ++key)
    if (!no(q, key, 0, 0)) all.emplace_back(mix(base + (Word(1) << 32) + key), key);
  std::sort(all.begin(), all.end());
  found.clear();
  for (size_t i = 0; i < all.size() && (Long)i < count; ++i) found.insert(all[i].second);
  return found;
}

inline Rule rule(const Json& p);

inline std::vector<Rule> rules(const Json& p) {
  std::vector<Rule> found;
  for (const Json& one : p["patterns"].items) found.push_back(rule(one));
  return found;
}

inline Rule neighborhood(const Json& p) {
  const Long length = p["length"].integer(), kernel = p["kernel"].integer();
  const Long dilation = p["dilation"].integer(), stride = p["stride"].integer();
  const bool causal = p["causal"].text == "true";
  return [=](Long q, Long k, Long, Long) -> int {
    if (mod(q, dilation) != mod(k, dilation) || k < 0 || k >= length) return 0;
    const Long size = floor_div(length - mod(q, dilation) + dilation - 1, dilation);
    const Long y = floor_div(q, dilation), t = floor_div(k, dilation);
    const Long first = floor_div(y, stride) * stride;
    if (causal) return t <= y && t > std::min(first + stride - 1 - kernel, size - kernel - 1);
    const Long half = kernel / 2, leader = first + stride / 2;
    const Long inside = std::min({leader - half, size - 1 - half, size - kernel});
    const Long start = std::max(Long(0), inside);
    return t >= start && t < start + kernel;
  };
}

// A bound that may be null, for unbounded.
inline bool within(Long x, const Json& bound, Long factor = 1) {
  return bound.kind == Json::null || x <= bound.integer() * factor;
}

inline Rule positional(const std::string& kind, const Json& p) {
  const auto pairs = [](auto f) {
    return Rule([f](Long q, Long k, Long, Long) { return int(f(q, k)); });
  };
  const auto number = [&p](const char* name) { return p[name].integer(); };
  if (kind == "Full") return pairs([](Long, Long) { return true; });
  if (kind == "Causal") return pairs([](Long q, Long k) { return k <= q; });
  if (kind == "SlidingWindow")
    return pairs([l = p["left"], r = p["right"], d = number("dilation")](Long q, Long k) {
      return within(q - k, l, d) && within(k - q, r, d) && mod(q - k, d) == 0;
    });
  if (kind == "Chunked")
    return pairs([back = p["back"], ahead = p["ahead"], size = number("size"),
                  origin = number("origin")](Long q, Long k) {
      const Long c = floor_div(q - origin, size) - floor_div(k - origin, size);
      return within(c, back) && within(-c, ahead);
    });
  if (kind == "Strided")
    return pairs([s = number("stride"), r = number("phase")](Long q, Long k) {
      return mod(q - k, s) == r;
    });
  if (kind == "PrefixLM")
    return pairs([n = number("prefix")](Long q, Long k) { return k <= q || k < n; });
  if (kind == "Sink") return pairs([n = number("count")](Long, Long k) { return k < n; });
  if (kind == "Offsets")
    return pairs([s = members(p["offsets"])](Long q, Long k) { return s.count(q - k); });
  if (kind == "Keys") return pairs([s = members(p["tokens"])](Long, Long k) { return s.count(k); });
  if (kind == "Rows") return pairs([s = members(p["tokens"])](Long q, Long) { return s.count(q); });
  if (kind == "Global")
    return pairs([s = members(p["tokens"])](Long q, Long k) { return s.count(q) || s.count(k); });
  if (kind == "KeyStride")
    return pairs([s = members(p["residues"]), n = number("period")](Long, Long k) {
      return s.count(mod(k, n));
    });
  if (kind == "RowStride")
    return pairs([s = members(p["residues"]), n = number("period")](Long q, Long) {
      return s.count(mod(q, n));
    });
  if (kind == "Xor")
    return pairs([s = members(p["distances"])](Long q, Long k) { return s.count(q ^ k); });
  return nullptr;
}

inline Rule listed(const std::string& kind, const Json& p) {
  if (kind == "Document") {
    const Table ids(p["ids"]), keys(p["key_ids"].kind == Json::null ? p["ids"] : p["key_ids"]);
    return [=](Long q, Long k, Long, Long) { return ids[q] == keys[k] && ids[q] >= 0; };
  }
  if (kind == "Neighborhood") return neighborhood(p);
  if (kind == "RandomKeys") {
    const Rule none = [](Long, Long, Long, Long) { return 0; };
    const Rule no = p["exclude"].kind == Json::null ? none : rule(p["exclude"]);
    const auto drawn = std::make_shared<std::map<Long, std::set<Long>>>();
    const Long count = p["count"].integer(), length = p["length"].integer();
    const bool causal = p["causal"].text == "true";
    return [=, seed = p["seed"].word()](Long q, Long k, Long, Long) -> int {
      if (!drawn->count(q)) (*drawn)[q] = draw(q, count, seed, length, causal, no);
      return (*drawn)[q].count(k);
    };
  }
  if (kind == "Tokens")
    return [s = relation(p["csr"])](Long q, Long k, Long, Long) -> int { return s.count({q, k}); };
  if (kind == "BlockPattern")
    return [s = relation(p["mask"]), a = p["block_size"].items[0].integer(),
            b = p["block_size"].items[1].integer()](Long q, Long k, Long, Long) -> int {
      return s.count({floor_div(q, a), floor_div(k, b)});
    };
  return nullptr;
}

inline Rule rule(const Json& p) {
  const std::string kind = p["kind"].text;
  if (Rule found = positional(kind, p)) return found;
  if (Rule found = listed(kind, p)) return found;
  if (kind == "Blocked")
    return [f = rule(p["pattern"]), s = p["block_size"].integer()](Long q, Long k, Long h, Long b) {
      return f(floor_div(q, s), floor_div(k, s), h, b);
    };
  if (kind == "Permuted")
    return [f = rule(p["pattern"]), order = Table(p["order"])](Long q, Long k, Long h, Long b) {
      return order[q] < 0 || order[k] < 0 ? 0 : f(order[q], order[k], h, b);
    };
  if (kind == "WithinDocument") {
    const Table ids(p["ids"]);
    std::vector<Long> place;
    for (auto x = ids.values.begin(); x != ids.values.end(); ++x)
      place.push_back(std::count(ids.values.begin(), x, *x));
    return [=, f = rule(p["pattern"])](Long q, Long k, Long h, Long b) {
      return ids[q] < 0 || ids[q] != ids[k] ? 0 : f(place[q], place[k], h, b);
    };
  }
  if (kind == "Grid") {
    std::vector<Long> shape;
    Long total = 1;
    for (const Json& extent : p["shape"].items) {
      shape.push_back(extent.integer());
      total *= shape.back();
    }
    return [=, parts = rules(p)](Long q, Long k, Long h, Long b) -> int {
      bool fine = k >= 0 && k < total;
      Long inner = 1;
      for (size_t i = shape.size(); fine && i-- > 0; inner *= shape[i]) {
        const Long y = mod(floor_div(q, inner), shape[i]), x = mod(floor_div(k, inner), shape[i]);
        fine = parts[i](y, x, h, b);
      }
      return fine;
    };
  }
  if (kind == "Not")
    return [f = rule(p["pattern"])](Long q, Long k, Long h, Long b) -> int {
      return f(q, k, h, b) == 0;
    };
  const std::vector<Rule> parts = rules(p);
  if (kind == "And")
    return [=](Long q, Long k, Long h, Long b) {
      int times = parts[0](q, k, h, b);
      for (size_t i = 1; times && i < parts.size(); ++i) times *= parts[i](q, k, h, b) > 0;
      return times;
    };
  if (kind == "Or" || kind == "Multi")
    return [=, once = kind == "Or"](Long q, Long k, Long h, Long b) {
      int times = 0;
      for (const Rule& part : parts) times += part(q, k, h, b);
      return once ? int(times > 0) : times;
    };
  if (kind == "PerHead")
    return [=](Long q, Long k, Long h, Long b) { return parts[h % parts.size()](q, k, h, b); };
  if (kind == "PerBatch")
    return [=](Long q, Long k, Long h, Long b) { return parts[b](q, k, h, b); };
  throw std::runtime_error("unknown kind " + kind);
}
