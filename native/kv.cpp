#include "kv.h"

#include <algorithm>
#include <atomic>
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

}  // namespace

void Pages::put(size_t i, std::shared_ptr<Page> p) {
  if (page.size() <= i) {
    page.resize(i + 1);
    data.resize(i + 1);
  }
  data[i] = p ? p->data() : nullptr;
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
      open_part_((size_t)OPEN_SLOTS * (head_dim + head_pad) * sizeof(float)) {}

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
  float* part = reinterpret_cast<float*>(page.data());
  const float none = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < layers * heads; i++, part += open_part_ / sizeof(float))
    for (int slot = used; slot < OPEN_SLOTS; slot++) {
      for (int d = 0; d < head_dim; d++) part[((size_t)(slot / PANEL) * head_dim + d) * PANEL + slot % PANEL] = none;
      std::fill_n(part + (size_t)OPEN_SLOTS * head_dim + (size_t)slot * head_pad, head_pad, none);
    }
}

void Kv::writable(Pages& pages, int index, int used, size_t bytes, bool open) const {
  std::shared_ptr<Page> old = index < (int)pages.page.size() ? pages.page[index] : nullptr;
  if (old && old.use_count() == 2) old->filled = used;  // this row's and `old`
  if (old && old->filled == used) return;
  auto fresh = std::make_shared<Page>(bytes);
  if (old && used) std::memcpy(fresh->data(), old->data(), bytes);
  else if (poison_ && !open) std::memset(fresh->data(), 0xFF, bytes);  // scales are NaN
  if (poison_ && open) scrub(*fresh, used);
  fresh->filled = used;
  pages.put(index, std::move(fresh));
}

void Kv::reserve(Row& r, int count) const {
  for (int slot = r.length, end = r.length + count; slot < end; slot = (slot / OPEN_SLOTS + 1) * OPEN_SLOTS) {
    int index = slot / OPEN_SLOTS;
    writable(r.open, index, slot % OPEN_SLOTS, open_bytes(), true);
    r.open.page[index]->filled = std::min(end - index * OPEN_SLOTS, OPEN_SLOTS);
  }
}

void Kv::seal(Row& r, int row, int threads) const {
  int due = form.due(r.length);
  if (due <= r.sealed) return;
  if (form.coded) {
    for (int slot = r.sealed; slot < due; slot = (slot / sealed_slots_ + 1) * sealed_slots_) {
      int index = slot / sealed_slots_;
      writable(r.codes, index, slot % sealed_slots_, sealed_bytes(), false);
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

CacheBytes Kv::bytes(const std::vector<Row>& rows) const {
  CacheBytes sum;
  std::unordered_set<const Page*> seen;
  size_t scales = (places.values - places.key_scales) + (places.end - places.value_scales);
  for (const Row& r : rows) {
    for (auto& p : r.open.page)
      if (p && seen.insert(p.get()).second) sum.open += p->memory.bytes;
    for (auto& p : r.codes.page)
      if (p && seen.insert(p.get()).second) {
        sum.scales += scales * layers * heads;
        sum.payload += p->memory.bytes - scales * layers * heads;
      }
  }
  return sum;
}

}  // namespace steno
