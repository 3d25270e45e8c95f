// The engine without Python: tiny models made from integers, run in every way that may not change a bit.
//
// Prints "<model> <form> <case> <hash>" per case. A case named text/... computes the logits of the same ids in its own way,
// so all of them have one hash per model and form; forest also hashes what is beside the text. Two builds, instruction
// sets, processors or emulators agree where their whole output is equal. `bits --list` prints the instruction sets that
// this processor can run, among which STENO_ISA chooses; `bits NAME ...` runs the models of these names only, and
// `bits --few ...` leaves out most widths and batches, and several threads (an emulator takes long for a turn of a wait).
#include <cstdio>
#include <cstring>
#include <string>

#include "../fault.h"
#include "../pool.h"
#include "../session.h"

using namespace steno;

namespace {

// ---- what is varied: one line more is one case more

struct WeightForm { const char* name; Matrix::Kind kind, head; int group; };
const WeightForm FORMS[] = {
    {"fp32", Matrix::F32, Matrix::F32, 0},      {"bf16", Matrix::BF16, Matrix::BF16, 0}, {"int8", Matrix::I8, Matrix::I8, 0},
    {"int4", Matrix::I4, Matrix::I8, 32}, {"int4-64", Matrix::I4, Matrix::I8, 64},
};

// No width is a multiple of 16, the vocabularies are odd, head widths and groupings differ.
struct Shape {
  const char* name;
  int width, layers, heads, kv_heads, head_dim, inner, vocab;
  bool tied, norms, biases;
  int window;  // of the odd layers
};
const Shape SHAPES[] = {
    {"plain", 42, 2, 6, 2, 8, 100, 301, false, false, false, 0},
    {"tied", 60, 2, 3, 1, 34, 72, 131, true, true, false, 0},
    {"window", 24, 3, 4, 4, 18, 90, 67, false, false, true, 33},
};

constexpr int PROMPT = 230, TAIL = 40;  // the tail crosses the end of the first chunk of 256 key slots
constexpr int WIDEST = 32, MOST_THREADS = 4, ROOM = 320;

// ---- numbers: a counter, mixed; a float is a whole number times a power of two

struct Stream {
  uint64_t state;
  uint64_t next() {
    uint64_t x = (state += 0x9E3779B97F4A7C15u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int below(int n) { return (int)(next() >> 33) % n; }
  float value(float around, float spread) { return around + (float)((int)(next() >> 40) - (1 << 23)) * spread * 0x1p-23f; }
  std::vector<float> values(size_t n, float around, float spread) {
    std::vector<float> v(n);
    for (float& x : v) x = value(around, spread);
    return v;
  }
};

struct Hash {
  uint64_t h = 0xCBF29CE484222325u;
  void add(const void* p, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ static_cast<const uint8_t*>(p)[i]) * 0x100000001B3u;
  }
};

std::vector<int32_t> ids(int n, int vocab, int salt) {
  Stream s{(uint64_t)salt << 32};
  std::vector<int32_t> out(n);
  for (int32_t& id : out) id = s.below(vocab);
  return out;
}

std::shared_ptr<Model> grow(const Shape& s, const WeightForm& form, int threads) {
  std::vector<int> windows(s.layers);
  std::vector<float> frequency(s.head_dim / 2);
  for (int l = 1; l < s.layers; l += 2) windows[l] = s.window;
  for (int j = 0; j < s.head_dim / 2; j++) frequency[j] = 1.0f / (float)(1 + j * j);
  auto m = std::make_shared<Model>(Config{s.width, s.layers, s.heads, s.kv_heads, s.head_dim, s.inner, s.vocab, ROOM, 1e-5f,
                                          form.kind, form.head, form.group, s.tied ? Model::IN_HEAD : Model::ROWS_F32,
                                          s.biases, s.biases, s.biases, s.norms, windows, std::vector<int>(s.layers, 1),
                                          frequency, threads});
  Stream r{1};
  auto put = [&](Model::Part part, int layer, int row, int n, int k, bool bias) {
    m->put_floats(part, layer, row, n, k, r.values((size_t)n * k, 0, 0.25f).data());
    if (bias) m->put_bias(part, layer, row, n, r.values(n, 0, 0.25f).data());
  };
  int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  for (int l = 0; l < s.layers; l++) {
    put(Model::QKV, l, 0, q + 2 * kv, s.width, s.biases);
    put(Model::OUT, l, 0, s.width, q, s.biases);
    put(Model::GATE_UP, l, 0, s.inner, s.width, s.biases);
    put(Model::GATE_UP, l, m->ip, s.inner, s.width, s.biases);
    put(Model::DOWN, l, 0, s.width, s.inner, s.biases);
    for (auto norm : {Model::NORM_IN, Model::NORM_MID}) m->put_norm(norm, l, s.width, r.values(s.width, 1, 0.25f).data());
    if (s.norms)
      for (auto norm : {Model::NORM_Q, Model::NORM_K}) m->put_norm(norm, l, s.head_dim, r.values(s.head_dim, 1, 0.25f).data());
  }
  m->put_norm(Model::NORM_OUT, 0, s.width, r.values(s.width, 1, 0.25f).data());
  put(Model::HEAD, 0, 0, s.vocab, s.width, false);
  if (!s.tied) m->put_embedding(r.values((size_t)s.vocab * s.width, 0, 0.25f).data());
  m->ready();
  return m;
}

// ---- ways to run

using Ids = std::vector<int32_t>;
struct Row { Ids tokens, parents; };

Row chain(const Ids& all, int from, int n) {
  Row r;
  for (int i = 0; i < n; i++) {
    r.tokens.push_back(all[from + i]);
    r.parents.push_back(i - 1);
  }
  return r;
}

// Runs the rows as one forest, padded to the widest.
void forward(Session& s, const std::vector<Row>& rows, std::vector<int> hidden = {}) {
  size_t w = 1;
  for (const Row& r : rows) w = std::max(w, r.tokens.size());
  Ids tokens(rows.size() * w, 0), parents(rows.size() * w, PAD);
  for (size_t b = 0; b < rows.size(); b++)
    for (size_t i = 0; i < rows[b].tokens.size(); i++) {
      tokens[b * w + i] = rows[b].tokens[i];
      parents[b * w + i] = rows[b].parents[i];
    }
  Request q;
  q.width = (int)w;
  q.tokens = tokens.data();
  q.parents = parents.data();
  q.high = s.model->c.layers;
  q.hidden = std::move(hidden);
  s.forward(q);
}

const float* logits(const Session& s, int row, int node) { return s.logits.data() + (size_t)(row * s.width + node) * s.vocab_stride; }

struct Bench {
  std::shared_ptr<Model> model;
  Ids text;
  std::unique_ptr<Session> base;  // PROMPT ids committed

  Bench(std::shared_ptr<Model> m) : model(std::move(m)), text(ids(PROMPT + TAIL, model->c.vocab, 7)) {
    base = std::make_unique<Session>(model, 1, ROOM, Form(), true);
    prefill(*base, {Ids(text.begin(), text.begin() + PROMPT)});
  }
  static void prefill(Session& s, const std::vector<Ids>& prompts) { s.prefill(prompts, nullptr, [] {}); }
  size_t row_bytes() const { return (size_t)model->c.vocab * 4; }
  std::vector<int> steps(int n) const {
    std::vector<int> path(n);
    for (int i = 0; i < n; i++) path[i] = i;
    return path;
  }

  // The tail on row `row` of `s`, in chains as wide as `width` says. Row b of the others runs `others` * b % 9 ids of its own
  // and keeps half of them.
  template <class Width> uint64_t tail(Session& s, const Width& width, int row = 0, int others = 0) {
    Hash h;
    for (int at = 0; at < TAIL;) {
      int n = std::min(width(), TAIL - at);
      std::vector<Row> rows(s.rows());
      std::vector<std::vector<int>> paths(s.rows());
      for (int b = 0; b < s.rows(); b++) {
        bool ours = b == row;
        int w = ours ? n : others * b % 9;
        rows[b] = ours ? chain(text, PROMPT + at, w) : chain(ids(64, model->c.vocab, 100 + b), at, w);
        paths[b] = steps(ours ? w : w / 2);
      }
      forward(s, rows);
      for (int i = 0; i < n; i++) h.add(logits(s, row, i), row_bytes());
      s.commit(paths);
      at += n;
    }
    return h.h;
  }

  // The tail hidden in random trees; `beside`, where given, takes in everything that came out.
  uint64_t trees(Session& s, uint64_t seed, Hash* beside = nullptr) {
    Hash h;
    Stream r{seed};
    for (int at = 0; at < TAIL;) {
      int n = std::min(5 + r.below(4), TAIL - at);
      Row tree;
      std::vector<int> path;
      while ((int)path.size() < n || (int)tree.tokens.size() < 3 * n) {
        int size = (int)tree.tokens.size();
        if ((int)path.size() < n && r.below(5) < 2) {
          tree.parents.push_back(path.empty() ? ROOT : path.back());
          tree.tokens.push_back(text[PROMPT + at + path.size()]);
          path.push_back(size);
        } else {
          tree.parents.push_back(size ? r.below(size + 1) - 1 : ROOT);
          tree.tokens.push_back(r.below(model->c.vocab));
        }
      }
      forward(s, {tree}, beside ? std::vector<int>{0, 1, model->c.layers} : std::vector<int>{});
      for (int i : path) h.add(logits(s, 0, i), row_bytes());
      if (beside) {
        int w = s.width, count = 7;
        for (int i = 0; i < w; i++) beside->add(logits(s, 0, i), row_bytes());
        beside->add(s.hidden.data(), (size_t)3 * w * model->c.width * 4);
        beside->add(s.best.data(), (size_t)w * 4);
        Ids top(w * count);
        std::vector<float> values(w * count);
        s.top(count, top.data(), values.data());
        beside->add(top.data(), top.size() * 4);
        beside->add(values.data(), values.size() * 4);
      }
      s.commit({path});
      at += n;
    }
    return h.h;
  }

  // The prompt piece by piece instead of by prefill, with a wrong turn that is taken back, then the tail.
  uint64_t pieces(int width) {
    Session s(model, 1, ROOM, Form(), true);
    for (int at = 0; at < PROMPT;) {
      int n = std::min(width, PROMPT - at);
      forward(s, {chain(text, at, n)});
      s.commit({steps(n)});
      at += n;
    }
    forward(s, {chain(ids(WIDEST, model->c.vocab, 3), 0, WIDEST)});
    s.commit({steps(WIDEST - 1)});
    s.crop({PROMPT});
    return tail(s, [&] { return width; });
  }

  // The text as row `row` of `rows`, beside rows of other lengths that run, idle and wait.
  uint64_t batch(int rows, int row) {
    auto s = base->fork(std::vector<int>(rows, 0));
    std::vector<int> lengths;
    for (int b = 0; b < rows; b++) lengths.push_back(b == row ? PROMPT : b * 97 % 200);
    s->crop(lengths);
    Stream r{(uint64_t)rows};
    return tail(*s, [&] { return 1 + r.below(9); }, row, 4);
  }
};

void print(const Shape& s, const WeightForm& f, const std::string& name, uint64_t hash) {
  std::printf("%s %s %s %016llx\n", s.name, f.name, name.c_str(), (unsigned long long)hash);
}

void run(const Shape& shape, const WeightForm& form, bool few) {
  Bench bench(grow(shape, form, 1));
  auto say = [&](const std::string& name, uint64_t hash) { print(shape, form, name, hash); };
  for (int width = 1; width <= WIDEST; width++) {
    if (few && width > 4 && width != 8 && width != 32) continue;
    auto s = bench.base->fork({0});
    say("text/width=" + std::to_string(width), bench.tail(*s, [&] { return width; }));
  }
  if (!few) say("text/pieces=13", bench.pieces(13));
  for (int rows : {2, 5, 8})
    if (rows == 2 || !few) say("text/batch=" + std::to_string(rows), bench.batch(rows, rows / 2));
  Hash beside;
  say("text/trees", bench.trees(*bench.base->fork({0}), 11, &beside));
  for (int threads = 2; threads <= MOST_THREADS && !few; threads++) {
    Bench more(grow(shape, form, threads));
    Stream r{(uint64_t)threads};
    std::string name = "text/threads=" + std::to_string(threads);
    say(name, more.tail(*more.base->fork({0}), [&] { return 1 + r.below(WIDEST); }));
    say(name + "/trees", more.trees(*more.base->fork({0}), threads));
    say(name + "/batch", more.batch(3, 1));
  }
  say("forest", beside.h);
}

}  // namespace

int main(int count, char** args) {
  if (count > 1 && !std::strcmp(args[1], "--list")) {
    for (auto name = kernel_names(); *name; name++) std::puts(*name);
    return 0;
  }
  try {
    Pool::get().insist(true);
    bool few = count > 1 && !std::strcmp(args[1], "--few");
    int first = few ? 2 : 1;
    for (const Shape& shape : SHAPES) {
      bool wanted = count == first;
      for (int i = first; i < count; i++) wanted = wanted || !std::strcmp(args[i], shape.name);
      for (const WeightForm& form : FORMS)
        if (wanted) run(shape, form, few);
    }
  } catch (const Fault& fault) {
    std::fprintf(stderr, "%s\n", fault.what());
    return 1;
  }
  return 0;
}
