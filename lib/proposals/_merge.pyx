# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Inner loops of lib/proposals/cells.py and lib/proposals/generate.py: graphs of image cells."""

import numpy as np

cimport numpy as cnp
from libc.math cimport INFINITY, fabsf, pow
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp.pair cimport pair
from libcpp.queue cimport priority_queue
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

cnp.import_array()

cdef struct Link:
    int32_t other
    float length
    float strength


def cell_borders(
    const int32_t[:, ::1] labels, const float[:, ::1] across_x, const float[:, ::1] across_y
):
    """The pairs of cells that touch, with what lies on their common borders.

    Args:
        labels: (H, W) cell of every pixel, 0..N-1.
        across_x: (H, W-1) strength of the step from a pixel to its right neighbour.
        across_y: (H-1, W) strength of the step from a pixel to the one below it.

    Returns:
        ((E, 2) int32 pairs i < j in order of first appearance, (E,) float32 steps on the border,
        (E,) float32 sum of their strengths).
    """
    cdef Py_ssize_t height = labels.shape[0], width = labels.shape[1], y, x
    cdef unordered_map[int64_t, int32_t] numbers
    cdef vector[int32_t] ends
    cdef vector[float] lengths, strengths
    with nogil:
        for y in range(height):
            for x in range(width):
                if x + 1 < width and labels[y, x] != labels[y, x + 1]:
                    _add_step(
                        labels[y, x], labels[y, x + 1], across_x[y, x],
                        numbers, ends, lengths, strengths,
                    )
                if y + 1 < height and labels[y, x] != labels[y + 1, x]:
                    _add_step(
                        labels[y, x], labels[y + 1, x], across_y[y, x],
                        numbers, ends, lengths, strengths,
                    )
    pairs = np.empty((lengths.size(), 2), np.int32)
    sums = np.empty((2, lengths.size()), np.float32)
    cdef int32_t[:, ::1] out_pairs = pairs
    cdef float[:, ::1] out_sums = sums
    for x in range(<Py_ssize_t> lengths.size()):
        out_pairs[x, 0] = ends[2 * x]
        out_pairs[x, 1] = ends[2 * x + 1]
        out_sums[0, x] = lengths[x]
        out_sums[1, x] = strengths[x]
    return pairs, sums[0], sums[1]


cdef inline void _add_step(
    int32_t a, int32_t b, float strength, unordered_map[int64_t, int32_t]& numbers,
    vector[int32_t]& ends, vector[float]& lengths, vector[float]& strengths,
) noexcept nogil:
    cdef int32_t low = min(a, b), high = max(a, b)
    cdef int64_t key = ((<int64_t> low) << 32) | high
    cdef int32_t number
    if numbers.count(key):
        number = numbers[key]
        lengths[number] += 1
        strengths[number] += strength
    else:
        numbers[key] = <int32_t> lengths.size()
        ends.push_back(low)
        ends.push_back(high)
        lengths.push_back(1)
        strengths.push_back(strength)


cdef struct Weights:
    double border
    double colour
    double texture
    double fill
    double size
    double share


cdef class _Nodes:
    """Cells and what they are merged into: features by node, in arrays of 2N - 1 rows."""

    cdef float[:, ::1] colour
    cdef float[:, ::1] texture
    cdef float[:, ::1] box
    cdef float[::1] area
    cdef float[::1] perimeter
    cdef double total

    def __init__(self, colour, texture, boxes, areas, pairs, lengths):
        num_cells = len(areas)
        count = max(2 * num_cells - 1, 0)

        def grown(values):
            array = np.zeros((count, *values.shape[1:]), np.float32)
            array[:num_cells] = values
            return array

        self.colour, self.texture = grown(colour), grown(texture)
        self.box, self.area = grown(boxes), grown(areas)
        ends = np.asarray(pairs).reshape(-1)
        steps = np.repeat(lengths, 2)
        self.perimeter = grown(np.bincount(ends, weights=steps, minlength=num_cells))
        self.total = float(np.sum(areas, dtype=np.float64))

    cdef double distance(self, int a, int b, Link* link, Weights* w) noexcept nogil:
        cdef double value = 0, smaller
        cdef float box_area
        if w.border != 0:
            value += w.border * link.strength / link.length
        if w.colour != 0:
            value += w.colour * _half_l1(
                &self.colour[a, 0], &self.colour[b, 0], self.colour.shape[1]
            )
        if w.texture != 0:
            value += w.texture * _half_l1(
                &self.texture[a, 0], &self.texture[b, 0], self.texture.shape[1]
            )
        smaller = (<double> self.area[a]) * self.area[b] / (self.area[a] + self.area[b])
        value *= pow(smaller / self.total, w.size)
        value *= 1 - w.share * link.length / min(self.perimeter[a], self.perimeter[b])
        if w.fill != 0:
            box_area = (
                (max(self.box[a, 2], self.box[b, 2]) - min(self.box[a, 0], self.box[b, 0]) + 1)
                * (max(self.box[a, 3], self.box[b, 3]) - min(self.box[a, 1], self.box[b, 1]) + 1)
            )
            value += w.fill * (box_area - self.area[a] - self.area[b]) / self.total
        return value

    cdef void merge(self, int a, int b, int node, float shared) noexcept nogil:
        cdef float part = self.area[a] / (self.area[a] + self.area[b])
        cdef Py_ssize_t i
        for i in range(self.colour.shape[1]):
            self.colour[node, i] = part * self.colour[a, i] + (1 - part) * self.colour[b, i]
        for i in range(self.texture.shape[1]):
            self.texture[node, i] = part * self.texture[a, i] + (1 - part) * self.texture[b, i]
        for i in range(2):
            self.box[node, i] = min(self.box[a, i], self.box[b, i])
            self.box[node, i + 2] = max(self.box[a, i + 2], self.box[b, i + 2])
        self.area[node] = self.area[a] + self.area[b]
        self.perimeter[node] = self.perimeter[a] + self.perimeter[b] - 2 * shared


cdef inline float _half_l1(const float* p, const float* q, Py_ssize_t count) noexcept nogil:
    cdef float s0 = 0, s1 = 0, s2 = 0, s3 = 0
    cdef Py_ssize_t i = 0
    while i + 4 <= count:  # four sums, as float additions may not be reordered by the compiler
        s0 += fabsf(p[i] - q[i])
        s1 += fabsf(p[i + 1] - q[i + 1])
        s2 += fabsf(p[i + 2] - q[i + 2])
        s3 += fabsf(p[i + 3] - q[i + 3])
        i += 4
    while i < count:
        s0 += fabsf(p[i] - q[i])
        i += 1
    return 0.5 * (s0 + s1 + s2 + s3)


def merge_tree(
    colour, texture, boxes, areas, pairs, lengths, strengths, dict weights, Py_ssize_t stop=1
):
    """Merges the two nearest neighbours again and again.

    The distance of two nodes is
    `(border * mean strength of their border + colour * d(colour) + texture * d(texture))
    * (a b / ((a + b) * total))^size * (1 - share * border length / smaller perimeter)
    + fill * (box around both - a - b) / total`
    with areas a and b and d half the L1 distance of histograms. Equal distances are settled by
    the nodes' numbers, so that the tree is always the same.

    Args:
        colour, texture: (N, D) float32 histograms of the cells, each summing to 1.
        boxes: (N, 4) xmin, ymin, xmax, ymax, inclusive.
        areas: (N,) pixels.
        pairs, lengths, strengths: as from `cell_borders`.
        weights: border, colour, texture, fill, size, share.
        stop: how many nodes to leave.

    Returns:
        (M, 2) int32: merge m made node N + m of these two nodes.
    """
    cdef Weights w = weights
    cdef _Nodes nodes = _Nodes(colour, texture, boxes, areas, pairs, lengths)
    cdef int num_cells = len(areas)
    cdef int num_merges = max(num_cells - stop, 0)
    merges = np.zeros((num_merges, 2), np.int32)
    cdef int32_t[:, ::1] out = merges
    cdef const int32_t[:, ::1] ends = pairs
    cdef const float[::1] length = lengths
    cdef const float[::1] strength = strengths
    cdef vector[vector[Link]] links
    cdef vector[uint8_t] alive
    cdef vector[int32_t] place
    cdef priority_queue[pair[double, int64_t]] queue
    cdef int64_t count = max(2 * num_cells - 1, 1)
    cdef int64_t key
    cdef Link link
    cdef Py_ssize_t e, done = 0
    cdef int a, b
    links.resize(count)
    alive.assign(count, 0)
    place.assign(count, -1)
    with nogil:
        for a in range(num_cells):
            alive[a] = 1
        for e in range(ends.shape[0]):
            link.length, link.strength = length[e], strength[e]
            a, b = ends[e, 0], ends[e, 1]
            link.other = b
            links[a].push_back(link)
            link.other = a
            links[b].push_back(link)
            queue.push(pair[double, int64_t](-nodes.distance(a, b, &link, &w), a * count + b))
        while done < num_merges and not queue.empty():
            key = queue.top().second
            queue.pop()
            a, b = <int> (key // count), <int> (key % count)
            if not (alive[a] and alive[b]):
                continue
            out[done, 0], out[done, 1] = a, b
            _join(nodes, a, b, <int> (num_cells + done), links, alive, place, queue, count, &w)
            done += 1
    return merges[:done]


cdef void _join(
    _Nodes nodes, int a, int b, int node, vector[vector[Link]]& links, vector[uint8_t]& alive,
    vector[int32_t]& place, priority_queue[pair[double, int64_t]]& queue, int64_t count, Weights* w,
) noexcept nogil:
    """Makes `node` of a and b, links it to their neighbours and queues the new distances."""
    cdef vector[Link] joined
    cdef Link link
    cdef float shared = 0
    cdef size_t i, j
    cdef int side, old, other
    alive[a] = 0
    alive[b] = 0
    alive[node] = 1
    for side in range(2):
        old = a if side == 0 else b
        for i in range(links[old].size()):
            link = links[old][i]
            if link.other == a or link.other == b:
                shared = link.length
            elif alive[link.other]:
                if place[link.other] >= 0:
                    joined[place[link.other]].length += link.length
                    joined[place[link.other]].strength += link.strength
                else:
                    place[link.other] = <int32_t> joined.size()
                    joined.push_back(link)
        vector[Link]().swap(links[old])
    nodes.merge(a, b, node, shared)
    for i in range(joined.size()):
        link = joined[i]
        other = link.other
        place[other] = -1
        j = 0
        while j < links[other].size():  # the links to a and b are dead
            if alive[links[other][j].other]:
                j += 1
            else:
                links[other][j] = links[other].back()
                links[other].pop_back()
        queue.push(
            pair[double, int64_t](-nodes.distance(node, other, &link, w), node * count + other)
        )
        link.other = node
        links[other].push_back(link)
    links[node].swap(joined)


def tree_members(const int32_t[:, ::1] merges, const double[::1] areas):
    """The cells of every node of a tree, the N cells themselves first.

    Returns:
        ((N + M, N) uint8 0/1, (N + M,) float64 pixels of the nodes).
    """
    cdef Py_ssize_t num_cells = areas.shape[0], count = num_cells + merges.shape[0], m, i, a, b
    members = np.zeros((count, num_cells), np.uint8)
    sizes = np.zeros(count, np.float64)
    cdef uint8_t[:, ::1] out = members
    cdef double[::1] size = sizes
    with nogil:
        for i in range(num_cells):
            out[i, i] = 1
            size[i] = areas[i]
        for m in range(num_cells, count):
            a, b = merges[m - num_cells, 0], merges[m - num_cells, 1]
            size[m] = size[a] + size[b]
            for i in range(num_cells):
                out[m, i] = out[a, i] | out[b, i]
    return members, sizes


def common_nodes(
    const int32_t[:, ::1] merges, const int32_t[:, ::1] pairs, Py_ssize_t num_cells
):
    """(E,) int32: the merge after which the two cells of a pair lie in one node.

    `num_cells + merges` must be a single tree.
    """
    cdef Py_ssize_t count = num_cells + merges.shape[0], m, e
    parents = np.full(count, -1, np.int32)
    common = np.zeros(pairs.shape[0], np.int32)
    cdef int32_t[::1] parent = parents
    cdef int32_t[::1] out = common
    cdef int32_t a, b
    with nogil:
        for m in range(merges.shape[0]):
            parent[merges[m, 0]] = <int32_t> (num_cells + m)
            parent[merges[m, 1]] = <int32_t> (num_cells + m)
        for e in range(pairs.shape[0]):
            a, b = pairs[e, 0], pairs[e, 1]
            while a != b:  # parents have higher numbers than their children
                if a < b:
                    a = parent[a]
                else:
                    b = parent[b]
            out[e] = <int32_t> (a - num_cells)
    return common


def outlines(
    const uint8_t[:, ::1] members, const int32_t[:, ::1] pairs, const float[::1] lengths,
    const float[::1] strengths, const double[::1] areas, const float[:, ::1] boxes,
):
    """What the outline and the extent of every mask are like. Masks must not be empty.

    Args:
        members: (K, N) 0/1, the cells of every mask.
        pairs: (E, 2) cells that touch.
        lengths: (E,) of their common borders.
        strengths: (E,) of a pixel step across them.
        areas, boxes: (N,) and (N, 4) of the cells; boxes are inclusive.

    Returns:
        (K, 4) float64: length of the outline without the image's border, mean strength on it (0
        where there is none), pixels, pixels of the box around the mask.
    """
    cdef Py_ssize_t num_masks = members.shape[0], num_cells = members.shape[1], k, i, cell
    described = np.zeros((num_masks, 4), np.float64)
    cdef double[:, ::1] out = described
    cdef vector[vector[int32_t]] of_cell  # numbers of the pairs it belongs to
    cdef double length, strength, area
    cdef float left, top, right, bottom
    cdef int32_t e
    of_cell.resize(num_cells)
    with nogil:
        for e in range(<int32_t> pairs.shape[0]):
            of_cell[pairs[e, 0]].push_back(e)
            of_cell[pairs[e, 1]].push_back(e)
        for k in range(num_masks):
            length = strength = area = 0
            left = top = INFINITY
            right = bottom = -INFINITY
            for cell in range(num_cells):
                if not members[k, cell]:
                    continue
                area += areas[cell]
                left, top = min(left, boxes[cell, 0]), min(top, boxes[cell, 1])
                right, bottom = max(right, boxes[cell, 2]), max(bottom, boxes[cell, 3])
                for i in range(<Py_ssize_t> of_cell[cell].size()):
                    e = of_cell[cell][i]
                    if not (members[k, pairs[e, 0]] and members[k, pairs[e, 1]]):
                        length += lengths[e]
                        strength += lengths[e] * strengths[e]
            out[k, 0] = length
            out[k, 1] = strength / length if length > 0 else 0
            out[k, 2] = area
            out[k, 3] = (right - left + 1) * (bottom - top + 1)
    return described


def suppress(
    const uint8_t[:, ::1] members, const double[::1] areas, double max_iou, Py_ssize_t keep
):
    """Greedy suppression of masks that overlap an earlier, kept one.

    Args:
        members: (K, N) 0/1, the cells of every mask, best first.
        areas: (N,) pixels of the cells.
        max_iou: masks are dropped when their IoU with a kept one is above this.
        keep: stop at so many.

    Returns:
        (J,) int64 ascending, J <= keep: the masks kept.
    """
    cdef Py_ssize_t num_masks = members.shape[0], num_cells = members.shape[1], k, i, j, q
    cdef vector[int64_t] kept
    cdef vector[double] pixels
    cdef vector[int32_t] cells
    cdef double own, shared
    cdef bint dropped
    with nogil:
        for k in range(num_masks):
            if <Py_ssize_t> kept.size() >= keep:
                break
            cells.clear()
            own = 0
            for i in range(num_cells):
                if members[k, i]:
                    cells.push_back(<int32_t> i)
                    own += areas[i]
            dropped = False
            for j in range(<Py_ssize_t> kept.size()):
                # IoU is at most the ratio of the areas: most pairs need no more than that.
                if min(own, pixels[j]) <= max_iou * max(own, pixels[j]):
                    continue
                q = kept[j]
                shared = 0
                for i in range(<Py_ssize_t> cells.size()):
                    if members[q, cells[i]]:
                        shared += areas[cells[i]]
                if shared > max_iou * (own + pixels[j] - shared):
                    dropped = True
                    break
            if not dropped:
                kept.push_back(k)
                pixels.push_back(own)
    result = np.empty(kept.size(), np.int64)
    cdef int64_t[::1] out = result
    for j in range(<Py_ssize_t> kept.size()):
        out[j] = kept[j]
    return result
