# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Inner loops of lib/proposals/regions.py."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy
from libcpp.vector cimport vector

cnp.import_array()

cdef enum:
    TILE = 1024


def pack_memberships(const uint8_t[:, ::1] masks):
    """Which proposals every pixel lies in, one bit a proposal.

    Args:
        masks: (P, N) 0/1, one row a proposal, one column a pixel.

    Returns:
        (N, 8 * ceil(P / 64)) uint8; bit p % 8 of byte p // 8 is proposal p. At least 8 bytes.
    """
    cdef Py_ssize_t num_proposals = masks.shape[0], num_pixels = masks.shape[1]
    cdef Py_ssize_t num_words = max(1, (num_proposals + 63) // 64)
    cdef Py_ssize_t tile, start, count, word, i
    cdef int byte
    keys = np.empty((num_pixels, 8 * num_words), np.uint8)
    cdef uint8_t[:, ::1] out = keys
    cdef uint8_t bits[8][TILE]  # one byte of 64 proposals' bits each
    cdef uint64_t words[TILE]
    with nogil:
        for tile in range((num_pixels + TILE - 1) // TILE):
            start = tile * TILE
            count = min(TILE, num_pixels - start)
            for word in range(num_words):
                for byte in range(8):
                    _byte_of_rows(masks, 64 * word + 8 * byte, start, count, bits[byte])
                _interleave(bits, count, <uint8_t*> words)
                for i in range(count):
                    memcpy(&out[start + i, 8 * word], &words[i], 8)
    return keys


cdef void _byte_of_rows(
    const uint8_t[:, ::1] masks, Py_ssize_t first, Py_ssize_t start, Py_ssize_t count, uint8_t* bits
) noexcept nogil:
    """Bits of the mask rows from `first` on, at most eight, into one byte per pixel."""
    cdef Py_ssize_t rows = masks.shape[0] - first, i
    cdef int b
    if rows >= 8:
        _eight_rows(&masks[first, start], masks.shape[1], count, bits)
        return
    for i in range(count):
        bits[i] = 0
    for b in range(<int> max(rows, 0)):
        for i in range(count):
            bits[i] |= (masks[first + b, start + i] != 0) << b


cdef void _interleave(uint8_t bits[8][TILE], Py_ssize_t count, uint8_t* out) noexcept nogil:
    """Byte k of pixel i is `bits[k][i]`; the compiler vectorises it."""
    cdef Py_ssize_t i
    for i in range(count):
        out[8 * i] = bits[0][i]
        out[8 * i + 1] = bits[1][i]
        out[8 * i + 2] = bits[2][i]
        out[8 * i + 3] = bits[3][i]
        out[8 * i + 4] = bits[4][i]
        out[8 * i + 5] = bits[5][i]
        out[8 * i + 6] = bits[6][i]
        out[8 * i + 7] = bits[7][i]


cdef void _eight_rows(
    const uint8_t* rows, Py_ssize_t stride, Py_ssize_t count, uint8_t* bits
) noexcept nogil:
    """One bit of each of eight mask rows into one byte per pixel; the compiler vectorises it."""
    cdef const uint8_t* r0 = rows
    cdef const uint8_t* r1 = rows + stride
    cdef const uint8_t* r2 = rows + 2 * stride
    cdef const uint8_t* r3 = rows + 3 * stride
    cdef const uint8_t* r4 = rows + 4 * stride
    cdef const uint8_t* r5 = rows + 5 * stride
    cdef const uint8_t* r6 = rows + 6 * stride
    cdef const uint8_t* r7 = rows + 7 * stride
    cdef Py_ssize_t i
    for i in range(count):
        bits[i] = (
            (r0[i] != 0) | ((r1[i] != 0) << 1) | ((r2[i] != 0) << 2) | ((r3[i] != 0) << 3)
            | ((r4[i] != 0) << 4) | ((r5[i] != 0) << 5) | ((r6[i] != 0) << 6) | ((r7[i] != 0) << 7)
        )


cdef inline uint64_t _hash(const uint8_t* key, Py_ssize_t num_bytes) noexcept nogil:
    cdef uint64_t value = 0x9E3779B97F4A7C15ULL
    cdef uint64_t word
    cdef Py_ssize_t i
    for i in range(0, num_bytes, 8):
        memcpy(&word, key + i, 8)
        value = (value ^ word) * 0xFF51AFD7ED558CCDULL
        value ^= value >> 32
    return value


def number_keys(const uint8_t[:, ::1] keys, uint64_t hash_mask=0xFFFFFFFFFFFFFFFF):
    """Numbers the distinct rows of `keys` in order of first appearance.

    Rows are found again by a 64-bit hash and then compared byte by byte, so two different rows
    never get one number whatever their hashes are.

    Args:
        keys: (N, B) bytes, B a multiple of 8, N > 0.
        hash_mask: which bits of the hash are used (tests force collisions with it).

    Returns:
        ((N,) int32 number of every row, (R,) int64 first row of every number,
        (R,) int64 how many rows have it).
    """
    cdef Py_ssize_t num_rows = keys.shape[0], num_bytes = keys.shape[1]
    numbers = np.empty(num_rows, np.int32)
    cdef int32_t[::1] number = numbers
    cdef vector[int64_t] first, count
    cdef vector[uint64_t] hashes
    cdef vector[int32_t] table
    cdef uint64_t slots = 1024, value, slot
    cdef const uint8_t* key
    cdef Py_ssize_t i
    cdef int32_t found, k
    with nogil:
        table.assign(slots, -1)
        for i in range(num_rows):
            key = &keys[i, 0]
            if i > 0 and memcmp(key, key - num_bytes, num_bytes) == 0:
                number[i] = number[i - 1]
                count[number[i]] += 1
                continue
            value = _hash(key, num_bytes) & hash_mask
            slot = value & (slots - 1)
            found = table[slot]
            while found >= 0 and not (
                hashes[found] == value and memcmp(key, &keys[first[found], 0], num_bytes) == 0
            ):
                slot = (slot + 1) & (slots - 1)
                found = table[slot]
            if found < 0:
                found = <int32_t> first.size()
                table[slot] = found
                first.push_back(i)
                count.push_back(0)
                hashes.push_back(value)
                if 2 * first.size() > slots:
                    slots *= 4
                    table.assign(slots, -1)
                    for k in range(<int32_t> first.size()):
                        slot = hashes[k] & (slots - 1)
                        while table[slot] >= 0:
                            slot = (slot + 1) & (slots - 1)
                        table[slot] = k
            number[i] = found
            count[found] += 1
    return numbers, _to_array(first), _to_array(count)


cdef _to_array(vector[int64_t]& values):
    out = np.empty(values.size(), np.int64)
    cdef int64_t[::1] view = out
    cdef Py_ssize_t i
    for i in range(<Py_ssize_t> values.size()):
        view[i] = values[i]
    return out


def extents(const int32_t[:, ::1] labels, const uint8_t[:, ::1] membership):
    """First and last column and row of every proposal.

    Args:
        labels: (H, W) region of every pixel.
        membership: (P, R) 0/1.

    Returns:
        (P, 4) int32 (xmin, ymin, xmax, ymax), all inclusive; (W, H, -1, -1) for an empty proposal.
    """
    cdef Py_ssize_t height = labels.shape[0], width = labels.shape[1]
    cdef Py_ssize_t num_proposals = membership.shape[0], num_regions = membership.shape[1]
    empty = np.array([width, height, -1, -1], np.int32)
    of_regions = np.tile(empty, (num_regions, 1))
    of_proposals = np.tile(empty, (num_proposals, 1))
    cdef int32_t[:, ::1] region = of_regions
    cdef int32_t[:, ::1] proposal = of_proposals
    cdef Py_ssize_t y, x, p, r
    cdef uint64_t eight
    cdef int32_t* box
    with nogil:
        for y in range(height):
            for x in range(width):
                if x == 0 or labels[y, x] != labels[y, x - 1]:
                    box = &region[labels[y, x], 0]
                    box[0] = min(box[0], <int32_t> x)
                    box[1] = min(box[1], <int32_t> y)
                    box[3] = <int32_t> y
                if x == width - 1 or labels[y, x] != labels[y, x + 1]:
                    box = &region[labels[y, x], 0]
                    box[2] = max(box[2], <int32_t> x)
        for p in range(num_proposals):
            box = &proposal[p, 0]
            r = 0
            while r < num_regions:
                # Most proposals have few regions: eight absent ones are passed over at once.
                if r + 8 <= num_regions:
                    memcpy(&eight, &membership[p, r], 8)
                    if eight == 0:
                        r += 8
                        continue
                if membership[p, r]:
                    box[0] = min(box[0], region[r, 0])
                    box[1] = min(box[1], region[r, 1])
                    box[2] = max(box[2], region[r, 2])
                    box[3] = max(box[3], region[r, 3])
                r += 1
    return of_proposals


def sampled_masks(
    const int32_t[:, ::1] labels,
    const uint8_t[:, ::1] membership,
    const int32_t[:, ::1] extents,
    int size,
):
    """Nearest-neighbour samples of every proposal inside its extent.

    Args:
        labels: (H, W) region of every pixel.
        membership: (P, R) 0/1.
        extents: (P, 4) as from `extents`.
        size: cells a side.

    Returns:
        (P, size, size) uint8 0/1, 0 for an empty proposal.
    """
    cdef Py_ssize_t num_proposals = membership.shape[0]
    sampled = np.zeros((num_proposals, size, size), np.uint8)
    cdef uint8_t[:, :, ::1] out = sampled
    cdef Py_ssize_t p, row, column
    cdef int64_t y, x, width, height
    with nogil:
        for p in range(num_proposals):
            width = extents[p, 2] - extents[p, 0] + 1
            height = extents[p, 3] - extents[p, 1] + 1
            if extents[p, 2] < 0:
                continue
            for row in range(size):
                y = extents[p, 1] + (2 * row + 1) * height // (2 * size)
                for column in range(size):
                    x = extents[p, 0] + (2 * column + 1) * width // (2 * size)
                    out[p, row, column] = membership[p, labels[y, x]]
    return sampled
