#include "kv.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "fault.h"
#include "pool.h"

namespace steno {
namespace {

// A page of sealed tokens is one block where blocks are whole panels of a handy size: then it is full when it is made,
// and no fork ever copies it.
int sealed_slots(const Form& f) {
  if (!f.coded) return PANEL;
  if (f.block % PANEL == 0 && f.block <= 8 * OPEN_SLOTS) return f.block;
  int least = std::lcm(PANEL, f.coding.group);
  return least * std::max(1, OPEN_SLOTS / least);
}

// One code of a table, as kernels.h lays them out.
int code(const uint8_t* table, int bits, int rows, int row, int lane) {
  auto field = [&](int per, int from, int width) {
    return table[(from + row / per) * PANEL + lane] >> row % per * width & ((1 << width) - 1);
  };
  int c = bits == 8 ? field(1, 0, 8) : bits == 4 ? field(2, 0, 4) : field(4, 0, 2);
  if (bits == 3) c += 4 * field(8, (rows + 3) / 4, 1);
  return c - ((c >> (bits - 1)) << bits);
}

float whole(uint16_t h) {
  float size = std::ldexp((float)(h & 0x3FF), -24);
  if (h & 0x7C00) size = std::ldexp((float)((h & 0x3FF) + 1024), ((h & 0x7C00) >> 10) - 25);
  return h & 0x8000 ? -size : size;
}

float number(const uint8_t* table, int bits, int rows, int row, int lane, uint16_t scale, uint16_t zero) {
  if (bits == 16) return whole(reinterpret_cast<const uint16_t*>(table)[row * PANEL + lane]);
  float step = whole(scale);
  return std::fma((float)code(table, bits, rows, row, lane), step, whole(zero) + step * (float)(1 << (bits - 1)));
}

}  // namespace

void Pages::put(size_t i, std::shared_ptr<Page> p) {
  if (page.size() <= i) {
    page.resize(i + 1);
    data.resize(i + 1);
  }
  data[i] = p ? p->data : nullptr;
  page[i] = std::move(p);
}

void Pages::cut(size_t count) {
  if (count >= page.size()) return;
  page.resize(count);
  data.resize(count);
}

Kv::Kv(const Config& c, const Kernels& k, const Form& f, bool poison)
    : form(f), layers(c.layers), heads(c.kv_heads), head_dim(c.head_dim), head_pad(round_up(c.head_dim, PANEL)),
      places(steno::places(f.coding, sealed_slots(f), head_dim, head_pad)), kernels_(k), poison_(poison), sealed_slots_(sealed_slots(f)),
      open_part_((size_t)OPEN_SLOTS * (head_dim + head_pad) * sizeof(float)),
      open_pages_(std::make_shared<Pieces>(open_part_ * layers * heads)), sealed_pages_(std::make_shared<Pieces>(places.end * layers * heads)) {}

Store Kv::open(const Row& r, int layer, int head) const {
  return {r.open.data.data(), OPEN_SLOTS, open_part_ * ((size_t)layer * heads + head)};
}

Store Kv::sealed(const Row& r, int layer, int head) const {
  return {r.codes.data.data(), sealed_slots_, places.end * ((size_t)layer * heads + head)};
}

float* Kv::key(const Row& r, int layer, int head, int slot) const {
  Store s = open(r, layer, head);
  int local = slot % OPEN_SLOTS;
  return reinterpret_cast<float*>(s.page[slot / OPEN_SLOTS] + s.at) + (size_t)(local / PANEL) * head_dim * PANEL + local % PANEL;
}

float* Kv::value(const Row& r, int layer, int head, int slot) const {
  Store s = open(r, layer, head);
  return reinterpret_cast<float*>(s.page[slot / OPEN_SLOTS] + s.at) + (size_t)OPEN_SLOTS * head_dim + (size_t)(slot % OPEN_SLOTS) * head_pad;
}

void Kv::scrub(Page& page, int used) const {
  float* part = reinterpret_cast<float*>(page.data);
  const float none = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < layers * heads; i++, part += open_part_ / sizeof(float))
    for (int slot = used; slot < OPEN_SLOTS; slot++) {
      for (int d = 0; d < head_dim; d++) part[((size_t)(slot / PANEL) * head_dim + d) * PANEL + slot % PANEL] = none;
      std::fill_n(part + (size_t)OPEN_SLOTS * head_dim + (size_t)slot * head_pad, head_pad, none);
    }
}

void Kv::writable(Pages& pages, int index, int used, bool open) const {
  std::shared_ptr<Page> old = index < (int)pages.page.size() ? pages.page[index] : nullptr;
  if (old && old.use_count() == 2) old->filled = used;  // this row's and `old`
  if (old && old->filled == used) return;
  auto fresh = std::make_shared<Page>(open ? open_pages_ : sealed_pages_);
  if (old && used) std::memcpy(fresh->data, old->data, fresh->bytes());
  else if (poison_ && !open) std::memset(fresh->data, 0xFF, fresh->bytes());  // scales are NaN
  if (poison_ && open) scrub(*fresh, used);
  fresh->filled = used;
  pages.put(index, std::move(fresh));
}

void Kv::reserve(Row& r, int count) const {
  for (int slot = r.length, end = r.length + count; slot < end; slot = (slot / OPEN_SLOTS + 1) * OPEN_SLOTS) {
    int index = slot / OPEN_SLOTS;
    writable(r.open, index, slot % OPEN_SLOTS, true);
    r.open.page[index]->filled = std::min(end - index * OPEN_SLOTS, OPEN_SLOTS);
  }
}

void Kv::seal(Row& r, int row, int threads) const {
  int due = form.due(r.length);
  if (due <= r.sealed) return;
  if (form.coded) {
    for (int slot = r.sealed; slot < due; slot = (slot / sealed_slots_ + 1) * sealed_slots_) {
      int index = slot / sealed_slots_;
      writable(r.codes, index, slot % sealed_slots_, false);
      r.codes.page[index]->filled = std::min(due - index * sealed_slots_, sealed_slots_);
    }
    struct Job {
      const Kv& kv;
      const Row& r;
      int due, threads;
      std::atomic<bool> fits;
    } job{*this, r, due, threads, {true}};
    Pool::get().run(threads, [](void* arg, int t) {
      Job& j = *static_cast<Job*>(arg);
      const Kv& kv = j.kv;
      for (int i = t; i < kv.layers * kv.heads; i += j.threads) {
        int layer = i / kv.heads, head = i % kv.heads;
        Seal s{kv.head_dim, kv.head_pad, j.r.sealed, j.due, kv.open(j.r, layer, head), kv.sealed(j.r, layer, head), kv.form.coding, kv.places};
        if (!kv.kernels_.seal(s)) j.fits = false;
      }
    }, &job);
    if (!job.fits)
      throw Fault(Fault::MODEL, "row " + std::to_string(row) + ": the model's keys or values are not finite, or spread beyond float16 (65504). "
                                "Use cache.dense with this model.");
  }
  r.sealed = due;
  for (int i = 0; (i + 1) * OPEN_SLOTS <= due; i++)
    if (i * OPEN_SLOTS >= form.sinks || form.coded) r.open.put(i, nullptr);
}

void Kv::crop(Row& r, int length) const {
  r.length = length;
  r.sealed = std::min(r.sealed, length);
  r.open.cut((length + OPEN_SLOTS - 1) / OPEN_SLOTS);
  if (!length) r.codes.cut(0);
  if (poison_ && length % OPEN_SLOTS && r.open.page.back()) {
    // A copy, or what this row alone sees: NaN behind the end.
    Page& last = *r.open.page.back();
    if (r.open.page.back().use_count() == 1) scrub(last, length % OPEN_SLOTS);
  }
}

void Kv::read(const Row& r, int layer, int head, int from, int to, float* keys, float* values) const {
  const Coding& c = form.coding;
  int groups = head_dim / c.channels;
  for (int slot = from; slot < to; slot++, keys += head_dim, values += head_dim) {
    if (form.coded && slot < r.sealed) {
      Store s = sealed(r, layer, head);
      int local = slot % s.slots, panel = local / PANEL, lane = local % PANEL;
      const uint8_t* base = s.page[slot / s.slots] + s.at;
      const uint8_t* key_table = base + panel * table_bytes(c.key_bits, head_dim);
      const uint16_t* key_scale = reinterpret_cast<const uint16_t*>(base + places.key_scales) + (size_t)(local / c.group) * 2 * head_pad;
      const uint16_t* value_scale = reinterpret_cast<const uint16_t*>(base + places.value_scales) + (size_t)panel * groups * 2 * PANEL + lane;
      for (int d = 0; d < head_dim; d++) {
        const uint8_t* value_table = base + places.values + ((size_t)panel * (head_pad / PANEL) + d / PANEL) * table_bytes(c.value_bits, PANEL);
        bool halves = c.key_bits == 16;
        int g = d / c.channels;
        keys[d] = number(key_table, c.key_bits, head_dim, d, lane, halves ? 0 : key_scale[d], halves ? 0 : key_scale[head_pad + d]);
        values[d] = number(value_table, c.value_bits, PANEL, lane, d % PANEL, halves ? 0 : value_scale[g * 2 * PANEL],
                           halves ? 0 : value_scale[(g * 2 + 1) * PANEL]);
      }
    } else {
      bool held = r.open.page[slot / OPEN_SLOTS] != nullptr && (slot >= r.sealed || slot < form.sinks);
      const float* k = held ? key(r, layer, head, slot) : nullptr;
      const float* v = held ? value(r, layer, head, slot) : nullptr;
      for (int d = 0; d < head_dim; d++) {
        keys[d] = held ? k[d * PANEL] : std::numeric_limits<float>::quiet_NaN();
        values[d] = held ? v[d] : std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
}

void Kv::write(Row& r, int layer, int head, int from, int count, const float* keys, const float* values) const {
  for (int slot = from; slot < from + count; slot++, keys += head_dim, values += head_dim) {
    float *k = key(r, layer, head, slot), *v = value(r, layer, head, slot);
    for (int d = 0; d < head_dim; d++) k[d * PANEL] = keys[d];
    std::copy_n(values, head_dim, v);
    std::fill(v + head_dim, v + head_pad, 0.0f);
  }
}

void Kv::copy_codes(const Row& r, uint8_t* out) const {
  for (auto& p : r.codes.page) out = std::copy_n(p->data, p->bytes(), out);
}

void Kv::restore(Row& r, int sealed, const uint8_t* codes) const {
  r = Row();
  r.length = r.sealed = sealed;
  if (!form.coded) return;
  for (int i = 0; i * sealed_slots_ < sealed; i++) {
    auto page = std::make_shared<Page>(sealed_pages_);
    std::memcpy(page->data, codes, page->bytes());
    codes += page->bytes();
    page->filled = std::min(sealed - i * sealed_slots_, sealed_slots_);
    r.codes.put(i, std::move(page));
  }
}

CacheBytes Kv::bytes(const std::vector<Row>& rows) const {
  CacheBytes sum;
  std::unordered_set<const Page*> seen;
  size_t scales = (places.values - places.key_scales) + (places.end - places.value_scales);
  for (const Row& r : rows) {
    for (auto& p : r.open.page)
      if (p && seen.insert(p.get()).second) sum.open += p->bytes();
    for (auto& p : r.codes.page)
      if (p && seen.insert(p.get()).second) {
        sum.scales += scales * layers * heads;
        sum.payload += p->bytes() - scales * layers * heads;
      }
  }
  return sum;
}

}  // namespace steno
