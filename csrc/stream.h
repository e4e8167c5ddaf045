// The non-zeros in the order of the computation, ready for the inner loops.
#pragma once

#include "tile.h"

namespace {

// How the non-zeros of the outputs are listed: one output at a time; two at a time, first what both
// have, sharing the loads, then what the one and the other have; or four that have all in common.
enum class Grouping { single, pair, block };

constexpr int rows_of(Grouping g) {
  return g == Grouping::single ? 1 : g == Grouping::pair ? 2 : 4;
}
constexpr int segments_of(Grouping g) { return g == Grouping::pair ? 4 : 1; }

// The farthest that an entry can be from the start of the packed input, in numbers.
constexpr int64_t most_distance = UINT16_MAX;

template <class Number>
struct Stream {
  Grouping grouping;
  int64_t passes;      // over the packed input, for each group
  int64_t channels;    // of the input in a pass
  int64_t row_groups;  // of a group
  // Of each group, pass and row group: where its segments start. A pair has the entries of both, of
  // the first, of the second, and the values.
  const int32_t* starts;
  int64_t starts_step;       // from a pass to the next
  const uint16_t* distance;  // of each entry, in numbers from the start of the packed input
  const Number* values;      // null if only the places matter

  int64_t starts_length() const { return row_groups * segments_of(grouping) + 1; }
  // Whether the entries of a row come in twos, as the instructions take them.
  bool in_twos() const { return per_float<Number> == 2 && values; }
  // How many entries that adds to some passes, at most.
  int64_t most_added(int64_t passes) const { return passes * (row_groups + 1); }
  const int32_t* starts_of(int64_t group, int64_t pass) const {
    return starts + (group * passes + pass) * starts_step;
  }
};

// A stream that is being written.
template <class Number>
struct Lists {
  int32_t* starts;
  uint16_t* distance;
  Number* values;  // null if only the places matter
};

// What lists the weight by outputs, for the forward pass and the gradient of the weights.
struct ByRow {
  const Index& index;
  const float* values;
  int64_t row_groups, blocks;

  ByRow(const Index& index, const float* values, int64_t rows, int64_t channels)
      : index(index),
        values(values),
        row_groups(rows / index.rows),
        blocks(ceil_div(channels, index.block_in)) {}

  int block() const { return index.block_in; }
  int64_t block_count() const { return blocks; }
  // Entries before those of a group and block; each has as many values as the index has rows.
  int64_t begin(int64_t group, int64_t block) const {
    return index.starts[(group * blocks + block) * row_groups];
  }
  // Writes `map` of the offset of each non-zero of a row in a block, and its values.
  template <class Map, class To, class Number>
  int64_t write(int64_t group, int64_t block, int64_t row, Map map, To* to, Number* value) const {
    const int32_t* start = index.starts + (group * blocks + block) * row_groups + row;
    const int64_t count = start[1] - start[0];
    const uint16_t* offsets = index.offsets + start[0];
    for (int64_t e = 0; e < count; e++) to[e] = static_cast<To>(map(offsets[e]));
    if (values) {
      const float* from = values + int64_t{start[0]} * index.rows;
      for (int64_t e = 0; e < count * index.rows; e++) value[e] = Number(from[e]);
    }
    return count;
  }
  // Calls `use` with offset and value of each non-zero of a row in a block, where rows are by
  // themselves.
  template <class Use>
  void each(int64_t group, int64_t block, int64_t row, Use use) const {
    const int32_t* start = index.starts + (group * blocks + block) * row_groups + row;
    for (int64_t e = start[0]; e < start[1]; e++) use(index.offsets[e], values[e]);
  }
  // If a pass is a block, the index can have its stream: whether it has, its starts, whether values
  // have to be written in another order; and the distances (and values) of a block.
  bool has_stream() const { return true; }
  const int32_t* starts() const { return index.starts; }
  static constexpr bool moves_values = false;
  void write_block(int64_t block, const int32_t* table, uint16_t* distance, float*) const {
    const int64_t last = index.starts[(block + 1) * row_groups];
    for (int64_t e = index.starts[block * row_groups]; e < last; e++)
      distance[e] = static_cast<uint16_t>(table[index.offsets[e]]);
  }
};

// What lists the weight by inputs, for the gradient of the input.
struct ByColumn {
  const Index& index;
  const float* values;
  int taps;
  int64_t columns, blocks, row_groups, blocks_in;

  ByColumn(const Index& index, const float* values, int taps, int64_t rows, int64_t channels)
      : index(index),
        values(values),
        taps(taps),
        columns(channels),
        blocks(ceil_div(rows, index.block_out)),
        row_groups(rows / index.rows),
        blocks_in(ceil_div(channels, index.block_in)) {}

  int block() const { return index.block_out; }
  int64_t block_count() const { return blocks; }
  int64_t begin(int64_t group, int64_t block) const {
    return int64_t{index.t_starts[(group * blocks + block) * columns]} * index.rows;
  }
  template <class Use>
  void each(int64_t group, int64_t block, int64_t column, Use use) const {
    const int32_t* start = index.t_starts + (group * blocks + block) * columns + column;
    if (start[0] == start[1]) return;
    const int rows = index.rows;
    const int64_t segment =
        (group * blocks_in + column / index.block_in) * row_groups + block * index.block_out / rows;
    const float* tile = values + int64_t{index.starts[segment]} * rows;
    for (int64_t e = start[0]; e < start[1]; e++) {
      const uint32_t word = index.t_entries[e];
      const float* from = tile + (word & 0xffff) * rows;
      for (int row = 0; row < rows; row++) use((word >> 16) + row * taps, from[row]);
    }
  }
  // As of ByRow; leaves out what `map` makes negative.
  template <class Map, class To, class Number>
  int64_t write(int64_t group, int64_t block, int64_t column, Map map, To* to,
                Number* value) const {
    int64_t count = 0;
    each(group, block, column, [&](uint32_t offset, float v) {
      const int32_t mapped = map(offset);
      // Written in any case: a branch would often be guessed wrongly.
      to[count] = static_cast<To>(mapped);
      value[count] = Number(v);
      count += mapped >= 0;
    });
    return count;
  }
  // As of ByRow.
  bool has_stream() const { return index.rows == 1; }
  const int32_t* starts() const { return index.t_starts; }
  static constexpr bool moves_values = true;
  void write_block(int64_t block, const int32_t* table, uint16_t* distance, float* to) const {
    const int64_t group = block / blocks, out = block % blocks * index.block_out;
    const int32_t* start = index.t_starts + block * columns;
    for (int64_t c = 0; c < blocks_in; c++, start += index.block_in) {
      const int64_t last = start[minimum<int64_t>(index.block_in, columns - c * index.block_in)];
      const float* tile = values + index.starts[(group * blocks_in + c) * row_groups + out];
      for (int64_t e = start[0]; e < last; e++) {
        distance[e] = static_cast<uint16_t>(table[index.t_entries[e] >> 16]);
        to[e] = tile[index.t_entries[e] & 0xffff];
      }
    }
  }
};

// Fills `table` with the distance of every offset in the blocks of a pass; negative if not used.
inline void fill_distances(const Problem& p, const Tile& t, int taps, int64_t channels,
                           int32_t* table) {
  for (int k = 0; k < taps; k++) {
    const Tap& tap = p.tap[k];
    int64_t start = 0;
    for (int plane = 0; plane < tap.plane; plane++) start += plane_size(p, t, plane);
    start += tap.shift_h * t.stride + tap.shift_w * t.unit;
    for (int64_t c = 0; c < channels; c++)
      table[c * taps + k] = tap.plane < 0 ? -1 : static_cast<int32_t>(c * t.channel + start);
  }
}

// Makes the entries from `begin` to `end`, of `width` values each, come in twos: the values of each
// output side by side. An odd last entry is cut into two halves, whose sum is the same. Returns the
// new end.
template <class Number>
inline int64_t pair_up(const Lists<Number>& to, int64_t begin, int64_t end, int width) {
  if ((end - begin) % 2) {
    to.distance[end] = to.distance[end - 1];
    for (Number* value = to.values + (end - 1) * width; value < to.values + end * width; value++)
      value[0] = value[width] = Number(0.5f * float(value[0]));
    end++;
  }
  if (width == 1) return end;
  for (Number* value = to.values + begin * width; value < to.values + end * width;
       value += 2 * width) {
    Number both[2 * 4];
    for (int row = 0; row < width; row++) {
      both[2 * row] = value[row];
      both[2 * row + 1] = value[width + row];
    }
    for (int i = 0; i < 2 * width; i++) value[i] = both[i];
  }
  return end;
}

// Lists a group and pass, of `merge` blocks of the index, by single rows or blocks of them.
template <class Source, class Number>
inline void list_rows(const Source& source, const Stream<Number>& s, const Lists<Number>& to,
                      const int32_t* table, int taps, int64_t group, int64_t pass, int64_t merge) {
  const int width = s.grouping == Grouping::block ? 4 : 1;
  const int64_t first = pass * merge, last = minimum(first + merge, source.block_count());
  const int64_t offsets = int64_t{source.block()} * taps;
  int64_t e = source.begin(group, first);
  if (s.in_twos()) {
    e += s.most_added(group * s.passes + pass);
    e += e % 2;
  }
  int32_t* starts = to.starts + (group * s.passes + pass) * s.starts_step;
  for (int64_t r = 0; r < s.row_groups; r++) {
    const int64_t begin = e;
    *starts++ = static_cast<int32_t>(begin);
    for (int64_t block = first; block < last; block++) {
      const int32_t* distance = table + (block - first) * offsets;
      e += source.write(
          group, block, r, [=](uint32_t offset) { return distance[offset]; }, to.distance + e,
          to.values ? to.values + e * width : nullptr);
    }
    if (s.in_twos()) e = pair_up(to, begin, e, width);
  }
  *starts = static_cast<int32_t>(e);
}

}  // namespace
