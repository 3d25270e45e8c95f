#include "session.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "fault.h"
#include "pool.h"

namespace steno {

using std::string;
using std::to_string;

namespace {
constexpr int SLICE = MAX_WIDTH;  // nodes a pass carries through the layers at once; bounds the workspace
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

string where(int row, int node) { return "row " + to_string(row) + ", node " + to_string(node) + ": "; }

size_t stretch(int n, int by) { return (size_t)n * (size_t)by; }
}  // namespace

// ---------------------------------------------------------------------------------------------------------- one pass

// Some nodes through some layers. Every thread runs body(); between two `meet`s each works on its share.
//
// With one or two nodes the row-wise work (norm, quantise, residual) costs less than a meeting of the threads, so every
// thread does all of it for itself, on its own copy of the residual stream. Either way each value is computed by the same
// operations in the same order.
struct Pass {
  Pass(Model& model, Session& session) : m(model), s(session) {}
  Model& m;
  Session& s;
  const Session::Node* node = nullptr;
  int count = 0, low = 0, high = 0;
  const int* hidden = nullptr;  // layers to keep
  int hidden_count = 0;
  const int* head = nullptr;  // nodes that need logits, and the rows of the output they go to
  const int* head_row = nullptr;
  int head_count = 0;
  float* logits = nullptr;
  int32_t* best = nullptr;
  const float* states = nullptr;  // in place of nodes: hidden states that only need the head, [count, width]

  int threads = 1;
  bool solo = false;
  struct Group { int row, first, count, units; };  // nodes of one row in this slice
  std::vector<Group> groups;
  int units = 0;        // attention calls per layer
  int take = 0;         // queries in each
  bool fused = false;   // the thread that attends also stages
  size_t q_max = 0;  // bytes of the longest quantised row
  int sums_max = 0, score_stride = 0;
  size_t own_floats = 0;

  void prepare();
  void body(int t);
  void start();

 private:
  void stage(int layer, const Group& g, int kv);
  void attend(int layer, int unit, float* own);
  void share(int panels, int t, int* a, int* b) const {
    auto cut = [&](int i) { return i == threads ? panels : std::min(panels, (int)((int64_t)panels * i / threads + 1) / 2 * 2); };
    *a = cut(t);
    *b = cut(t + 1);
  }
};

void Pass::prepare() {
  const Config& c = m.c;
  int64_t work = (int64_t)count * c.width * (states ? c.vocab : (c.heads + c.kv_heads) * c.head_dim * 2 + 3 * c.inner);
  threads = Pool::get().grant(c.threads, work);
  solo = count <= 2;
  int group = c.heads / c.kv_heads;
  for (int i = 0; i < count && node; i++) {
    if (groups.empty() || groups.back().row != node[i].row) groups.push_back({node[i].row, i, 0, 0});
    groups.back().count++;
  }
  int most = 1;
  for (const Group& g : groups) most = std::max(most, g.count * group);
  // As few calls as possible, alike in size: each goes over all keys and values, which costs more than threads that wait.
  // More only where threads would have none.
  for (int calls = (most + QUERIES - 1) / QUERIES;; calls *= 2) {
    take = round_up((most + calls - 1) / calls, TILE);
    units = 0;
    for (Group& g : groups) {
      g.units = (g.count * group + take - 1) / take;
      units += g.units * c.kv_heads;
    }
    if (take <= TILE || units >= threads) break;
  }
  int pairs = (int)groups.size() * c.kv_heads;
  fused = threads == 1 || pairs >= 4 * threads || (pairs % threads == 0 && count == (int)groups.size());
  for (const Matrix* a : {&m.layer[0].qkv, &m.layer[0].out, &m.layer[0].down, &m.head}) {
    q_max = std::max(q_max, byte_stride(a->kp));
    if (a->group) sums_max = std::max(sums_max, a->kp / a->group);
  }
  score_stride = round_up(s.capacity + 2 * PANEL, PANEL);

  Workspace& w = m.work;
  int n = std::max(count, 2);
  size_t each = solo ? 2 : 0;
  // Per thread: residual and normed rows (solo), one set of queries, scores, sums of values, unpacked tokens.
  own_floats = each * 2 * m.dp + 3 * stretch(QUERIES, s.head_pad_) + stretch(QUERIES, score_stride) + stretch(QUERIES, MAX_WIDTH) +
               unpacked_floats(s.head_pad_);
  own_floats = (own_floats + 63) / 64 * 64;
  w.own.get(own_floats * threads);
  w.x.get(stretch(n, m.dp));
  w.h.get(stretch(n, m.dp));
  w.qkv.get(stretch(n, round_up((c.heads + 2 * c.kv_heads) * c.head_dim, PANEL)));
  w.o.get(stretch(n, m.op));
  w.y.get(stretch(n, m.dp));
  w.gu.get(stretch(n, 2 * m.ip));
  w.act.get(stretch(n, m.ip));
  // Quantised rows, with room for a whole tile of them; each thread that works alone has two of its own.
  w.scale.get(stretch(n, 1) + stretch(threads, 2));
  w.bytes.get((size_t)(round_up(n, 16) + 16 * threads) * q_max);
  w.sums.get((size_t)(n + 2 * threads) * sums_max);
  w.best.get(stretch(threads, std::max(head_count, 1)));
  w.best_id.get(stretch(threads, std::max(head_count, 1)));
  w.unit.store(0);
}

void Pass::start() {
  prepare();
  Pool::get().run(threads, [](void* p, int t) { static_cast<Pass*>(p)->body(t); }, this);
}

// Keys and values of a group's nodes for one kv head: norm, rotation, then beside the committed ones.
void Pass::stage(int l, const Group& g, int kv) {
  const Config& c = m.c;
  const Layer& w = m.layer[l];
  int stride = w.qkv.panels * PANEL, d = c.head_dim;
  float* keys = s.staged(g.row, l, kv);
  float* values = keys + stretch(s.staged_width_, d);
  alignas(64) float k[1024];
  for (int i = g.first; i < g.first + g.count; i++) {
    const Session::Node& n = node[i];
    const float* from = m.work.qkv.data() + stretch(i, stride);
    std::memcpy(k, from + (c.heads + kv) * d, stretch(d, 4));
    for (int j = d; j < s.head_pad_; j++) k[j] = 0;
    if (w.norm_k) m.k.norm(k, w.norm_k, c.norm_eps, d, k);
    if (c.rotary[l]) m.k.rotate(k, m.rope.cos(n.position), m.rope.sin(n.position), d / 2);
    float* to = keys + stretch(n.index / PANEL, d * PANEL) + n.index % PANEL;
    for (int j = 0; j < d; j++) to[j * PANEL] = k[j];
    float* v = values + stretch(n.index, s.head_pad_);
    std::memcpy(v, from + (c.heads + c.kv_heads + kv) * d, stretch(d, 4));
    for (int j = d; j < s.head_pad_; j++) v[j] = 0;
  }
}

// Unit: up to QUERIES queries of one group and kv head, counted group by group, kv head by kv head.
void Pass::attend(int l, int unit, float* own) {
  const Config& c = m.c;
  const Layer& w = m.layer[l];
  const Group* g = groups.data();
  while (unit >= g->units * c.kv_heads) unit -= g++->units * c.kv_heads;
  int kv = unit / g->units, first = unit % g->units * take, per = c.heads / c.kv_heads, d = c.head_dim;
  const Row& row = s.row_[g->row];
  const Form& form = s.kv_.form;

  Attend a;
  a.queries = std::min(take, g->count * per - first);
  a.head_dim = d;
  a.head_pad = s.head_pad_;
  a.length = row.length;
  a.seal = form.coded ? row.sealed : 0;
  a.lead = form.window ? form.sinks : 0;
  a.open = s.kv_.open(row, l, kv);
  a.sealed = s.kv_.sealed(row, l, kv);
  a.coding = form.coding;
  a.places = s.kv_.places;
  a.staged_keys = s.staged(g->row, l, kv);
  a.staged_values = a.staged_keys + stretch(s.staged_width_, d);
  a.staged = 0;
  float* q = own;
  a.scores = q + stretch(QUERIES, s.head_pad_);
  a.score_stride = score_stride;
  a.staged_scores = a.scores + stretch(QUERIES, score_stride);
  a.sums = a.staged_scores + stretch(QUERIES, MAX_WIDTH);
  a.unpacked = a.sums + 2 * stretch(QUERIES, s.head_pad_);
  float root = 1.0f / std::sqrt((float)d);
  for (int i = 0; i < a.queries; i++) {
    int at = g->first + (first + i) / per, h = kv * per + (first + i) % per;
    const Session::Node& n = node[at];
    float* qi = q + stretch(i, s.head_pad_);
    std::memcpy(qi, m.work.qkv.data() + stretch(at, w.qkv.panels * PANEL) + h * d, stretch(d, 4));
    for (int j = d; j < s.head_pad_; j++) qi[j] = 0;
    if (w.norm_q) m.k.norm(qi, w.norm_q, c.norm_eps, d, qi);
    if (c.rotary[l]) m.k.rotate(qi, m.rope.cos(n.position), m.rope.sin(n.position), d / 2);
    m.k.scale(qi, root, d);
    a.query[i] = qi;
    a.out[i] = m.work.o.data() + stretch(at, m.op) + h * d;
    a.from[i] = c.windows[l] ? std::max(0, n.slot - c.windows[l] + 1) : 0;
    a.low[i] = form.window ? std::max(a.from[i], n.slot - form.window + 1) : a.from[i];
    a.chain[i] = n.chain;
    a.path[i] = s.paths_.data() + n.path;
    a.path_len[i] = n.path_len;
    for (int j = 0; j < n.path_len; j++) a.staged = std::max(a.staged, a.path[i][j] + 1);
  }
  m.k.attend(a);
}

void Pass::body(int t) {
  const Config& c = m.c;
  Workspace& w = m.work;
  Pool& pool = Pool::get();
  const Kernels& k = m.k;
  float* own = w.own.data() + own_floats * t;
  float* x = w.x.data();
  float* h = w.h.data();
  int8_t* bytes = w.bytes.data();
  float* scale = w.scale.data();
  int32_t* sums = w.sums.data();
  if (solo) {
    x = own;
    h = own + 2 * stretch(m.dp, 1);
    bytes += (size_t)(16 + 16 * t) * q_max;
    scale += 2 + 2 * t;
    sums += (size_t)(2 + 2 * t) * sums_max;
  }
  float* attention = own + (solo ? 4 * stretch(m.dp, 1) : 0);
  bool exact = c.kind == Matrix::I8 || c.kind == Matrix::I4;  // the layers multiply whole numbers
  auto meet = [&] { pool.meet(threads, t); };
  auto settle = [&] { if (!solo) pool.meet(threads, t); };
  auto each = [&](int n, auto f) {
    for (int i = solo ? 0 : t; i < n; i += solo ? 1 : threads) f(i);
  };
  // Row i of the activations that `a` will multiply.
  auto quantise = [&](const Matrix& a, const float* rows, size_t stride, int i) {
    if (a.kind == Matrix::I8 || a.kind == Matrix::I4)
      k.quantise(a, rows + i * stride, bytes + i * byte_stride(a.kp), scale + i, a.group ? sums + stretch(i, a.kp / a.group) : nullptr);
  };
  auto product = [&](const Matrix& a, const float* rows, int a0, int a1, int n, const Rows& y) {
    k.matmul(a, a0, a1, n, Acts{rows, bytes, byte_stride(a.kp), scale, sums}, y);
  };
  auto times = [&](const Matrix& a, const float* rows, float* y, size_t stride) {
    int p0, p1;
    share(a.panels, t, &p0, &p1);
    product(a, rows, p0, p1, count, {y, stride, nullptr});
  };
  auto keep = [&](int layer, int i) {
    if (solo && t) return;
    for (int j = 0; j < hidden_count; j++)
      if (hidden[j] == layer)
        std::memcpy(s.hidden.data() + stretch(j * s.rows() * s.width + node[i].row * s.width + node[i].index, c.width),
                    x + stretch(i, m.dp), stretch(c.width, 4));
  };

  each(count, [&](int i) {
    float* xi = x + stretch(i, m.dp);
    const float* given = states ? states + stretch(i, c.width) : node[i].embed;
    if (given) {
      std::memcpy(xi, given, stretch(c.width, 4));
      for (int j = c.width; j < m.dp; j++) xi[j] = 0;
    } else {
      m.embed(node[i].token, xi);
    }
    if (node) keep(low, i);
  });

  for (int l = low; l < high; l++) {
    const Layer& a = m.layer[l];
    each(count, [&](int i) {
      k.norm(x + stretch(i, m.dp), a.norm_in, c.norm_eps, c.width, h + stretch(i, m.dp));
      quantise(a.qkv, h, m.dp, i);
    });
    settle();
    times(a.qkv, h, w.qkv.data(), stretch(a.qkv.panels, PANEL));
    meet();
    if (fused) {
      int pair = 0, unit = 0;
      for (const Group& g : groups)
        for (int kv = 0; kv < c.kv_heads; kv++, pair++, unit += g.units)
          if (pair % threads == t) {
            stage(l, g, kv);
            for (int u = 0; u < g.units; u++) attend(l, unit + u, attention);
          }
    } else {
      int pair = 0;
      for (const Group& g : groups)
        for (int kv = 0; kv < c.kv_heads; kv++, pair++)
          if (pair % threads == t) stage(l, g, kv);
      meet();
      for (int u; (u = w.unit.fetch_add(1, std::memory_order_relaxed)) < units;) attend(l, u, attention);
    }
    meet();
    if (t == 0) w.unit.store(0, std::memory_order_relaxed);  // seen by all: several meetings lie before the next use
    if (exact) {
      each(count, [&](int i) { quantise(a.out, w.o.data(), m.op, i); });
      settle();
    }
    times(a.out, w.o.data(), w.y.data(), m.dp);
    meet();
    each(count, [&](int i) {
      k.add(x + stretch(i, m.dp), w.y.data() + stretch(i, m.dp), m.dp);
      k.norm(x + stretch(i, m.dp), a.norm_mid, c.norm_eps, c.width, h + stretch(i, m.dp));
      quantise(a.gate_up, h, m.dp, i);
    });
    settle();
    {
      // The same share of gate and up, so that their thread can go on to combine them.
      int p0, p1, up = m.ip / PANEL;
      share(up, t, &p0, &p1);
      Rows y{w.gu.data(), 2 * stretch(m.ip, 1), nullptr};
      product(a.gate_up, h, p0, p1, count, y);
      product(a.gate_up, h, up + p0, up + p1, count, y);
      for (int i = 0; i < count; i++)
        k.swiglu(y[i] + p0 * PANEL, y[i] + m.ip + p0 * PANEL, w.act.data() + stretch(i, m.ip) + p0 * PANEL, (p1 - p0) * PANEL);
    }
    meet();
    if (exact) {
      each(count, [&](int i) { quantise(a.down, w.act.data(), m.ip, i); });
      settle();
    }
    times(a.down, w.act.data(), w.y.data(), m.dp);
    meet();
    each(count, [&](int i) {
      k.add(x + stretch(i, m.dp), w.y.data() + stretch(i, m.dp), m.dp);
      keep(l + 1, i);
    });
  }
  if (!head_count) return;

  settle();  // the j-th head may be another thread's node
  each(head_count, [&](int j) {
    k.norm(x + stretch(head[j], m.dp), m.norm_out, c.norm_eps, c.width, h + stretch(j, m.dp));
    quantise(m.head, h, m.dp, j);
  });
  settle();
  int p0, p1;
  share(m.head.panels, t, &p0, &p1);
  Rows y{logits, s.vocab_stride, head_row};
  product(m.head, h, p0, p1, head_count, y);
  if (!best) return;
  int from = p0 * PANEL, to = std::min(p1 * PANEL, c.vocab);
  for (int j = 0; j < head_count; j++) {
    float* value = w.best.data() + stretch(t, head_count) + j;
    w.best_id.data()[stretch(t, head_count) + j] = from < to ? k.argmax(y[j], from, to, value) : (*value = -INFINITY, 0);
  }
  meet();
  if (t) return;
  for (int j = 0; j < head_count; j++) {
    int id = 0;
    float value = -INFINITY;
    for (int u = 0; u < threads; u++)
      if (w.best.data()[stretch(u, head_count) + j] > value) {
        value = w.best.data()[stretch(u, head_count) + j];
        id = w.best_id.data()[stretch(u, head_count) + j];
      }
    best[head_row[j]] = id;
  }
}

// ------------------------------------------------------------------------------------------------------- the session

Session::Session(std::shared_ptr<Model> m, int rows, int cap, const Form& form, bool poison)
    : model(std::move(m)), capacity(cap), vocab_stride(stretch(model->head.panels, PANEL)), kv_(model->c, model->k, form, poison),
      head_pad_(kv_.head_pad), poison_(poison) {
  if (rows < 1) throw Fault(Fault::VALUE, "batch must be at least 1, not " + to_string(rows));
  if (cap < 1 || cap > model->c.context)
    throw Fault(Fault::VALUE, "capacity must be between 1 and the model's context of " + to_string(model->c.context) + " tokens, not " +
                                 to_string(cap));
  row_.resize(rows);
}

Session::Session(const Session& from, const std::vector<int>& rows)
    : model(from.model), capacity(from.capacity), vocab_stride(from.vocab_stride), kv_(from.kv_), head_pad_(from.head_pad_),
      poison_(from.poison_) {
  for (int r : rows) {
    if (r < 0 || r >= from.rows())
      throw Fault(Fault::VALUE, "fork: row " + to_string(r) + " does not exist; the session has rows 0 to " + to_string(from.rows() - 1));
    row_.push_back(from.row_[r]);
  }
  if (row_.empty()) throw Fault(Fault::VALUE, "fork: name at least one row");
}

std::unique_ptr<Session> Session::fork(const std::vector<int>& rows) { return std::unique_ptr<Session>(new Session(*this, rows)); }

float* Session::staged(int row, int layer, int g) const {
  size_t part = stretch(staged_width_, model->c.head_dim + head_pad_);
  return staging_.data() + part * (((size_t)row * model->c.layers + layer) * model->c.kv_heads + g);
}

void Session::stage(int w) {
  staged_width_ = round_up(std::max(w, 1), PANEL);
  size_t n = stretch(staged_width_, model->c.head_dim + head_pad_) * row_.size() * model->c.layers * model->c.kv_heads;
  staging_.get(n);
  if (poison_) std::fill_n(staging_.data(), n, NOT_A_NUMBER);
}

void Session::settle() {
  if (staged_width_ <= PANEL) return;
  staging_.memory.reset();
  stage(1);
}

void Session::accept(int b, const int* nodes, int n) {
  if (!n) return;
  Row& r = row_[b];
  kv_.reserve(r, n);
  struct Job { Session& s; const Row& r; int row; const int* nodes; int n, threads; } job{*this, r, b, nodes, n, 1};
  int64_t work = (int64_t)n * kv_.heads * kv_.head_dim * 2;
  job.threads = n < PANEL ? 1 : Pool::get().grant(model->c.threads, work * kv_.layers / 4);
  auto body = [](void* arg, int t) {
    Job& j = *static_cast<Job*>(arg);
    const Kv& kv = j.s.kv_;
    int d = kv.head_dim, pad = kv.head_pad, width = j.s.staged_width_;
    for (int i = t; i < kv.layers * kv.heads; i += j.threads) {
      int l = i / kv.heads, g = i % kv.heads;
      const float* from = j.s.staged(j.row, l, g);
      const float* from_v = from + stretch(width, d);
      for (int k = 0; k < j.n; k++) {
        int slot = j.r.length + k, node = j.nodes[k];
        const float* kf = from + stretch(node / PANEL, d * PANEL) + node % PANEL;
        float* kt = kv.key(j.r, l, g, slot);
        for (int e = 0; e < d; e++) kt[e * PANEL] = kf[e * PANEL];
        std::memcpy(kv.value(j.r, l, g, slot), from_v + stretch(node, pad), stretch(pad, 4));
      }
    }
  };
  if (job.threads == 1) body(&job, 0);
  else Pool::get().run(job.threads, body, &job);
  r.length += n;
  int due = kv_.form.due(r.length) - r.sealed;
  if (due > 0) kv_.seal(r, b, Pool::get().grant(model->c.threads, (int64_t)due * kv_.heads * kv_.head_dim * kv_.layers));
}

void Session::plan(const Request& r) {
  const Config& c = model->c;
  int w = r.width;
  if (w < 1 || w > MAX_WIDTH) throw Fault(Fault::VALUE, "nodes: width must be between 1 and " + to_string(MAX_WIDTH) + ", not " + to_string(w));
  if (r.low < 0 || r.low >= r.high || r.high > c.layers)
    throw Fault(Fault::VALUE, "nodes.layers: (" + to_string(r.low) + ", " + to_string(r.high) + ") is not a range within the model's " +
                                 to_string(c.layers) + " layers");
  if (r.low && !r.embeds) throw Fault(Fault::VALUE, "nodes.layers: starting at layer " + to_string(r.low) + " needs nodes.embeds, the input of that layer");
  for (int l : r.hidden)
    if (l < r.low || l > r.high)
      throw Fault(Fault::VALUE, "want.hidden: layer " + to_string(l) + " is not computed; this forward has layers " + to_string(r.low) + " to " + to_string(r.high));
  bool windowed = kv_.form.window > 0;
  for (int win : c.windows) windowed = windowed || win;
  if ((r.positions || r.visible) && windowed)
    throw Fault(Fault::CAPS, "nodes.positions, nodes.visible: this session attends through a sliding window, which the native backend places by slot; leave them out");

  nodes_.clear();
  paths_.clear();
  live.assign(stretch(rows(), w), 0);
  parents_.assign(r.parents, r.parents + stretch(rows(), w));
  int far = 0;
  std::vector<int> of_row(w);  // where node i of the row stands in nodes_
  for (int b = 0; b < rows(); b++) {
    bool ended = false;
    for (int i = 0; i < w; i++) {
      size_t at = stretch(b, w) + i;
      int parent = r.parents[at];
      if (parent == PAD) {
        ended = true;
        continue;
      }
      if (ended) throw Fault(Fault::VALUE, where(b, i) + "follows a padding node; padding stands at the end of a row");
      if (parent < ROOT || parent >= i)
        throw Fault(Fault::VALUE, where(b, i) + "parent " + to_string(parent) + " must be -1 (the committed prefix), -2 (padding) or an earlier node");
      Node n{};
      n.row = b;
      n.index = i;
      if (r.embeds) {
        n.embed = r.embeds + at * c.width;
        for (int j = 0; j < c.width; j++)
          if (!std::isfinite(n.embed[j])) throw Fault(Fault::VALUE, where(b, i) + "nodes.embeds holds NaN or infinity");
      } else {
        n.token = r.tokens[at];
        if (n.token < 0 || n.token >= c.vocab)
          throw Fault(Fault::PROMPT, where(b, i) + "token " + to_string(n.token) + " is outside the vocabulary of " + to_string(c.vocab));
      }
      const Node* up = parent == ROOT ? nullptr : &nodes_[of_row[parent]];
      n.slot = up ? up->slot + 1 : row_[b].length;
      if (n.slot >= capacity)
        throw Fault(Fault::PROMPT, where(b, i) + "the row holds " + to_string(row_[b].length) + " tokens and this node would be token " +
                                       to_string(n.slot + 1) + " of at most " + to_string(capacity) + "; open the session with a larger capacity");
      int room = kv_.form.room(row_[b].length, capacity);
      if (n.slot - row_[b].length >= room)
        throw Fault(Fault::VALUE, where(b, i) + "the row has room for " + to_string(room) + " tokens before its cache changes form, and this node is deeper");
      n.position = r.positions ? r.positions[at] : n.slot;
      if (n.position < 0 || n.position >= c.context)
        throw Fault(Fault::PROMPT, where(b, i) + "position " + to_string(n.position) + " is outside the context of " + to_string(c.context));
      far = std::max(far, n.position);
      if (r.visible) {
        // Ordered by depth, then by index: for ancestors-or-self this is the default order.
        n.path = (int)paths_.size();
        const bool* sees = r.visible + at * w;
        if (!sees[i]) throw Fault(Fault::VALUE, where(b, i) + "nodes.visible hides the node from itself");
        for (int j = 0; j < w; j++)
          if (sees[j]) paths_.push_back(j);
        n.path_len = (int)paths_.size() - n.path;
      } else if (up && up->path + up->path_len == (int)paths_.size()) {
        paths_.push_back(i);  // a chain shares its parent's list
        n.path = up->path;
        n.path_len = up->path_len + 1;
        n.chain = up->chain && n.path_len == i + 1;
      } else {
        n.path = (int)paths_.size();
        for (int j = 0; up && j < up->path_len; j++) {
          int step = paths_[up->path + j];
          paths_.push_back(step);
        }
        paths_.push_back(i);
        n.path_len = (int)paths_.size() - n.path;
        n.chain = n.path_len == i + 1;
      }
      of_row[i] = (int)nodes_.size();
      live[at] = 1;
      nodes_.push_back(n);
    }
    if (r.visible)
      for (Node& n : nodes_) {
        if (n.row != b) continue;
        int* p = paths_.data() + n.path;
        for (int j = 0; j < n.path_len; j++)
          if (!live[stretch(b, w) + p[j]]) throw Fault(Fault::VALUE, where(b, n.index) + "nodes.visible shows it padding node " + to_string(p[j]));
        std::stable_sort(p, p + n.path_len, [&](int i, int j) { return nodes_[of_row[i]].slot < nodes_[of_row[j]].slot; });
        if (row_[b].length + n.path_len > capacity)
          throw Fault(Fault::PROMPT, where(b, n.index) + "sees more nodes than the row's capacity of " + to_string(capacity) + " has room for");
      }
  }
  model->rope.reach(far + 1);
}

// Slices hold whole rows, so that every node a row shows to another is staged before either attends.
void Session::run(int low, int high, const std::vector<int>& hidden_wanted, const std::vector<int>& heads,
                  const std::vector<int>& head_rows, float* logits_out, int32_t* best_out) {
  size_t h0 = 0;
  for (size_t first = 0; first < nodes_.size();) {
    size_t last = first;
    while (last < nodes_.size()) {
      size_t end = last;
      while (end < nodes_.size() && nodes_[end].row == nodes_[last].row) end++;
      if (end - first > (size_t)SLICE && last > first) break;
      last = end;
    }
    size_t h1 = h0;
    std::vector<int> local;
    while (h1 < heads.size() && heads[h1] < (int)last) local.push_back(heads[h1++] - (int)first);
    Pass p(*model, *this);
    p.node = nodes_.data() + first;
    p.count = (int)(last - first);
    p.low = low;
    p.high = high;
    p.hidden = hidden_wanted.data();
    p.hidden_count = (int)hidden_wanted.size();
    p.head = local.data();
    p.head_row = head_rows.data() + h0;
    p.head_count = (int)local.size();
    p.logits = logits_out;
    p.best = best_out;
    p.start();
    h0 = h1;
    first = last;
  }
}

void Session::forward(const Request& r) {
  std::lock_guard<std::mutex> guard(model->lock);
  full_ = false;
  serial++;
  plan(r);
  width = r.width;
  stage(width);
  has_logits = r.logits;
  hidden_layers = r.hidden;
  size_t all = stretch(rows(), width);
  std::vector<int> heads, head_rows;
  if (r.logits) {
    logits.get(all * vocab_stride);
    best.get(all);
    for (size_t i = 0; i < nodes_.size(); i++) {
      heads.push_back((int)i);
      head_rows.push_back(nodes_[i].row * width + nodes_[i].index);
    }
  }
  if (!r.hidden.empty()) hidden.get(all * r.hidden.size() * model->c.width);
  run(r.low, r.high, r.hidden, heads, head_rows, logits.data(), best.data());
  full_ = r.low == 0 && r.high == model->c.layers;
}

void Session::prefill(const std::vector<std::vector<int32_t>>& prompts, float* last, const std::function<void()>& breathe) {
  std::lock_guard<std::mutex> guard(model->lock);
  const Config& c = model->c;
  if ((int)prompts.size() != rows())
    throw Fault(Fault::VALUE, "prefill: " + to_string(prompts.size()) + " prompts for " + to_string(rows()) + " rows");
  int longest = 0;
  for (int b = 0; b < rows(); b++) {
    int n = (int)prompts[b].size();
    if (row_[b].length + n > capacity)
      throw Fault(Fault::PROMPT, "row " + to_string(b) + ": " + to_string(n) + " tokens after " + to_string(row_[b].length) +
                                     " do not fit in the capacity of " + to_string(capacity) + "; shorten the prompt or open the session with a larger capacity");
    for (int i = 0; i < n; i++)
      if (prompts[b][i] < 0 || prompts[b][i] >= c.vocab)
        throw Fault(Fault::PROMPT, "row " + to_string(b) + ", token " + to_string(i) + ": id " + to_string(prompts[b][i]) + " is outside the vocabulary of " + to_string(c.vocab));
    longest = std::max(longest, n);
  }
  full_ = false;
  serial++;
  has_logits = false;
  std::vector<int> done(rows(), 0), chain(MAX_WIDTH);
  for (int i = 0; i < MAX_WIDTH; i++) chain[i] = i;
  int reach = 1;
  for (Row& r : row_) reach = std::max(reach, r.length);
  model->rope.reach(std::min(reach + longest, c.context));
  stage(std::min(longest, MAX_WIDTH));
  for (bool more = true; more;) {
    more = false;
    nodes_.clear();
    paths_ = chain;
    std::vector<int> heads, head_rows, taken(rows(), 0);
    int room = SLICE;
    for (int b = 0; b < rows(); b++) {
      int left = (int)prompts[b].size() - done[b], n = std::min({left, room, kv_.form.room(row_[b].length, left)});
      for (int i = 0; i < n; i++) {
        int slot = row_[b].length + i;
        nodes_.push_back({b, i, prompts[b][done[b] + i], slot, slot, 0, i + 1, nullptr, true});
      }
      if (last && n && n == left) {
        heads.push_back((int)nodes_.size() - 1);
        head_rows.push_back(b);
      }
      taken[b] = n;
      room -= n;
      more = more || left > n;
    }
    run(0, c.layers, {}, heads, head_rows, last, nullptr);
    for (int b = 0; b < rows(); b++) {
      accept(b, chain.data(), taken[b]);
      done[b] += taken[b];
    }
    if (more) breathe();
  }
  settle();
}

void Session::commit(const std::vector<std::vector<int>>& paths) {
  std::lock_guard<std::mutex> guard(model->lock);
  if ((int)paths.size() != rows()) throw Fault(Fault::VALUE, "commit: " + to_string(paths.size()) + " paths for " + to_string(rows()) + " rows");
  bool any = false;
  for (auto& p : paths) any = any || !p.empty();
  if (any && !full_)
    throw Fault(Fault::VALUE, "commit: there is no forward to commit from; each commit needs its own forward over all layers, with nothing in between");
  for (int b = 0; b < rows(); b++) {
    int parent = ROOT;
    for (int i : paths[b]) {
      if (i < 0 || i >= width || !live[stretch(b, width) + i])
        throw Fault(Fault::VALUE, "commit: row " + to_string(b) + " has no node " + to_string(i));
      if (parents_[stretch(b, width) + i] != parent)
        throw Fault(Fault::VALUE, "commit: row " + to_string(b) + ": node " + to_string(i) + " is not a child of " +
                                     (parent == ROOT ? string("the committed prefix") : "node " + to_string(parent)) + "; a path runs from the root to a leaf");
      parent = i;
    }
  }
  full_ = false;
  for (int b = 0; b < rows(); b++) accept(b, paths[b].data(), (int)paths[b].size());
  settle();
}

void Session::crop(const std::vector<int>& lengths) {
  std::lock_guard<std::mutex> guard(model->lock);
  if ((int)lengths.size() != rows()) throw Fault(Fault::VALUE, "crop: " + to_string(lengths.size()) + " lengths for " + to_string(rows()) + " rows");
  for (int b = 0; b < rows(); b++)
    if (lengths[b] < 0 || lengths[b] > row_[b].length)
      throw Fault(Fault::VALUE, "crop: row " + to_string(b) + " holds " + to_string(row_[b].length) + " tokens and cannot be cropped to " + to_string(lengths[b]));
  for (int b = 0; b < rows(); b++)
    if (lengths[b] && kv_.form.due(lengths[b]) != row_[b].sealed)
      throw Fault(Fault::CAPS, "crop: row " + to_string(b) + " has " + to_string(row_[b].sealed) + " tokens sealed, so it cannot be cropped to " +
                                   to_string(lengths[b]) + "; crop to 0 and prefill the row again");
  full_ = false;
  for (int b = 0; b < rows(); b++)
    if (row_[b].length != lengths[b]) kv_.crop(row_[b], lengths[b]);
}

void Session::head(const float* states, int n, float* out) {
  std::lock_guard<std::mutex> guard(model->lock);
  std::vector<int> index(SLICE);
  for (int i = 0; i < SLICE; i++) index[i] = i;
  for (int first = 0; first < n; first += SLICE) {
    int some = std::min(SLICE, n - first);
    Pass p(*model, *this);
    p.count = some;
    p.states = states + stretch(first, model->c.width);
    p.head = p.head_row = index.data();
    p.head_count = some;
    p.logits = out + stretch(first, 1) * vocab_stride;
    p.start();
  }
}

void Session::top(int count, int32_t* ids, float* values) {
  std::lock_guard<std::mutex> guard(model->lock);
  if (!has_logits) throw Fault(Fault::VALUE, "step.top: the forward was asked for no logits");
  if (count < 1 || count > model->c.vocab)
    throw Fault(Fault::VALUE, "step.top: count must be between 1 and " + to_string(model->c.vocab) + ", not " + to_string(count));
  struct Job { Session& s; int count, n, threads; int32_t* ids; float* values; } job{*this, count, (int)live.size(), std::min(model->c.threads, (int)live.size()), ids, values};
  Pool::get().run(job.threads, [](void* arg, int t) {
    Job& j = *static_cast<Job*>(arg);
    for (int i = t; i < j.n; i += j.threads)
      if (j.s.live[i])
        j.s.model->k.top(j.s.logits.data() + stretch(i, 1) * j.s.vocab_stride, j.s.model->c.vocab, j.count, j.ids + stretch(i, j.count), j.values + stretch(i, j.count));
  }, &job);
}

void Session::kept(int row, int layer, int from, int to, float* keys, float* values) const {
  for (int g = 0; g < kv_.heads; g++) {
    size_t at = stretch(g, to - from) * kv_.head_dim;
    kv_.read(row_[row], layer, g, from, to, keys + at, values + at);
  }
}

void Session::append(int row, int count, const float* keys, const float* values) {
  std::lock_guard<std::mutex> guard(model->lock);
  Row& r = row_[row];
  if (count > capacity - r.length)
    throw Fault(Fault::PROMPT, "row " + to_string(row) + " would hold " + to_string(r.length + count) + " tokens, its capacity is " + to_string(capacity) +
                                   ". Open the session larger.");
  full_ = false;
  for (int done = 0; done < count;) {
    int some = kv_.form.room(r.length, count - done);
    kv_.reserve(r, some);
    for (int layer = 0; layer < kv_.layers; layer++)
      for (int g = 0; g < kv_.heads; g++) {
        size_t at = (stretch(layer * kv_.heads + g, count) + done) * kv_.head_dim;
        kv_.write(r, layer, g, r.length, some, keys + at, values + at);
      }
    r.length += some;
    done += some;
    kv_.seal(r, row, model->c.threads);
  }
}

void Session::restore(int row, int sealed, const uint8_t* codes) {
  std::lock_guard<std::mutex> guard(model->lock);
  full_ = false;
  kv_.restore(row_[row], sealed, codes);
}

}  // namespace steno
