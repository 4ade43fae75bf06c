/* theta(lambda) = sum_i lambda_i theta_i on raw bytes, correctly rounded, all soups in one sweep.
 *
 * Every output is the exact sum of the float64 weights times the stored numbers, rounded once, to
 * nearest, ties to even: the same bytes on every machine. A cheap sum with a proven error bound
 * decides nearly all elements: float32 for bf16 and fp16 out, float64 for fp32 out. Those that lie
 * within the bound of a tie are collected and summed again without any error.
 *
 * Built without -ffast-math and with -ffp-contract=off: what is proven below is IEEE arithmetic.
 */
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build for every x86: the loader picks the widest vectors that the machine has. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

enum format { BF16, F16, F32, F64 }; /* as in kernel.py */
static const int WIDTH[] = {2, 2, 4, 8};

enum { BLOCK = 1024 }; /* elements; what belongs to a block stays in the first two caches */

INLINE uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint64_t bits_of_double(double value) { uint64_t bits; memcpy(&bits, &value, 8); return bits; }
INLINE double double_of(uint64_t bits) { double value; memcpy(&value, &bits, 8); return value; }

/* ---- formats ---------------------------------------------------------------------------- */

/* Exact. Returns 1 where a NaN or infinity is among the numbers. */
INLINE int decode_float(const uint8_t *restrict raw, int format, float *restrict out, size_t n) {
    uint32_t worst = 0; /* the largest magnitude's bits: those of infinity and NaN are largest */
    if (format == BF16) {
        for (size_t j = 0; j < n; j++) {
            uint16_t half;
            memcpy(&half, raw + 2 * j, 2);
            uint32_t bits = (uint32_t)half << 16, magnitude = bits & 0x7FFFFFFF;
            worst = magnitude > worst ? magnitude : worst;
            out[j] = float_of(bits);
        }
    } else if (format == F16) {
        for (size_t j = 0; j < n; j++) {
            uint16_t half;
            memcpy(&half, raw + 2 * j, 2);
            uint32_t sign = (uint32_t)(half & 0x8000) << 16;
            /* Moves the exponent's bias from 15 to 127; right for subnormal numbers too. */
            uint32_t bits = bits_of(float_of((uint32_t)(half & 0x7FFF) << 13) * 0x1p112f);
            bits |= (half & 0x7C00) == 0x7C00 ? 0x7F800000 : 0;
            worst = bits > worst ? bits : worst;
            out[j] = float_of(bits | sign);
        }
    } else {
        for (size_t j = 0; j < n; j++) {
            uint32_t bits, magnitude;
            memcpy(&bits, raw + 4 * j, 4);
            magnitude = bits & 0x7FFFFFFF;
            worst = magnitude > worst ? magnitude : worst;
            out[j] = float_of(bits);
        }
    }
    return worst >= 0x7F800000;
}

/* One float64 to any format, to nearest even; NaN becomes the format's quiet NaN. */
INLINE void encode(double value, int format, uint8_t *raw) {
    if (format == F64) {
        memcpy(raw, &value, 8);
        return;
    }
    const int kept = format == BF16 ? 7 : format == F16 ? 10 : 23; /* bits of the mantissa */
    const int bias = format == F16 ? 15 : 127, width = 8 * WIDTH[format];
    const uint64_t infinity = (uint64_t)(2 * bias + 1) << kept;
    uint64_t bits = bits_of_double(value), result;
    int exponent = (int)(bits >> 52 & 0x7FF) - 1023 + bias;
    uint64_t mantissa = bits & 0xFFFFFFFFFFFFF;
    if ((bits & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000) {
        result = infinity | (uint64_t)1 << (kept - 1);
        bits = 0;
    } else if (exponent >= 2 * bias + 1) {
        result = infinity;
    } else {
        int shift = 52 - kept;
        if (exponent <= 0) { /* subnormal: more is cut off, and the leading one is written out */
            shift += 1 - exponent;
            mantissa |= (uint64_t)1 << 52;
            exponent = 0;
        }
        if (shift > 54) {
            result = 0; /* below half of the smallest number */
        } else {
            result = ((uint64_t)exponent << kept) + (mantissa >> shift);
            uint64_t rest = mantissa & (((uint64_t)1 << shift) - 1), half = (uint64_t)1 << (shift - 1);
            result += rest > half || (rest == half && (result & 1)); /* may carry to infinity */
        }
    }
    result |= bits >> 63 << (width - 1);
    if (width == 16)
        memcpy(raw, &result, 2);
    else
        memcpy(raw, &result, 4);
}

/* ---- sums without error ------------------------------------------------------------------ */

/* a + b rounded, and its error, exactly (Knuth). */
INLINE double two_sum(double a, double b, double *error) {
    double total = a + b, from_b = total - a;
    *error = (a - (total - from_b)) + (b - from_b);
    return total;
}

/* head + cut rounded to odd: rounding that once more, to at most 51 bits, is right
 * (Boldo and Melquiond 2008). */
INLINE double round_to_odd(double head, double cut) {
    uint64_t bits = bits_of_double(head);
    uint64_t outwards = 1 - 2 * ((bits ^ bits_of_double(cut)) >> 63);
    return double_of(bits + ((cut != 0) & ~bits & 1 ? outwards : 0));
}

/* The upper 26 significant bits of a weight: times a float of 24 bits both halves are exact. */
INLINE double upper_half(double weight) {
    return double_of(bits_of_double(weight) & ~(uint64_t)0x7FFFFFF);
}

/* sum_i weights[i] * x[i], rounded to odd, whatever cancels (Shewchuk 1997). spare: 2N doubles. */
static double expansion_sum(const double *weights, const double *x, int policies, double *spare) {
    int parts = 0;
    for (int i = 0; i < policies; i++) {
        double upper = upper_half(weights[i]);
        double halves[2] = {upper, weights[i] - upper};
        for (int h = 0; h < 2; h++) {
            double total = x[i] * halves[h];
            for (int part = 0; part < parts; part++)
                total = two_sum(total, spare[part], &spare[part]);
            spare[parts++] = total;
        }
    }
    double head = spare[--parts], cut = 0;
    while (parts > 0 && cut == 0) /* once something was cut, smaller parts cannot change its sign */
        head = two_sum(head, spare[--parts], &cut);
    return round_to_odd(head, cut);
}

/* ---- one block ---------------------------------------------------------------------------- */

struct work { /* for one block of N policies */
    float *x;         /* [N, BLOCK] */
    float *size;      /* [BLOCK], sum_i |x_i| */
    float *total;     /* [BLOCK] */
    float *lost_floats; /* [BLOCK], 0 where `total` is exact */
    double *sums;     /* [BLOCK] */
    uint8_t *unsure;  /* [BLOCK] */
    int32_t *where;   /* [BLOCK], the unsure elements */
    double *terms;    /* [N, BLOCK], theirs */
    double *plain, *high, *low; /* [BLOCK] */
    uint64_t *lost;   /* [BLOCK], not 0 where two float64s do not hold the sum */
    double *spare;    /* [4 N] */
};

/* One of them whose sum has more than two float64s, or is no number. */
static double sum_one(const struct work *w, const double *weights, const int *used, int count,
                      size_t m) {
    if (!isfinite(w->plain[m]))
        return w->plain[m]; /* infinities and NaN: as IEEE adds them */
    double *x = w->spare, *row = w->spare + count;
    for (int i = 0; i < count; i++) {
        x[i] = w->terms[(size_t)i * BLOCK + m];
        row[i] = weights[used[i]];
    }
    double sum = expansion_sum(row, x, count, w->spare + 2 * count);
    return sum == 0 && w->plain[m] == 0 ? w->plain[m] : sum;
}

/* A float64 that was rounded to odd, to bf16: to odd once more, then to nearest even. */
INLINE uint16_t odd_to_bf16(double value) {
    float single = (float)value;
    uint32_t bits = bits_of(single);
    double whole = fabs((double)single), exact = fabs(value);
    bits += (bits & 1) | (whole == exact) ? 0 : whole < exact ? 1 : (uint32_t)-1;
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return exact <= INFINITY ? (uint16_t)rounded : 0x7FC0;
}

/* The elements that the cheap sum could not decide. */
INLINE void sum_exactly(const struct work *w, const double *weights, const int *used, int count,
                        size_t unsure, int format, uint8_t *restrict out) {
    double *restrict high = w->high, *restrict low = w->low, *restrict plain = w->plain;
    uint64_t *restrict lost = w->lost;
    const int32_t *restrict where = w->where;
    for (size_t m = 0; m < unsure; m++) {
        high[m] = low[m] = 0;
        lost[m] = 0;
    }
    for (int i = 0; i < count; i++) {
        const float *restrict x = w->x + (size_t)used[i] * BLOCK;
        double *restrict term = w->terms + (size_t)i * BLOCK;
        const double weight = weights[used[i]], upper = upper_half(weight), lower = weight - upper;
        for (size_t m = 0; m < unsure; m++)
            term[m] = x[where[m]];
        if (i == 0) /* nothing is added to a zero, which would lose the sign of -0 */
            for (size_t m = 0; m < unsure; m++)
                plain[m] = weight * term[m];
        else
            for (size_t m = 0; m < unsure; m++)
                plain[m] += weight * term[m];
        for (size_t m = 0; m < unsure; m++) {
            double error, rest, other_error, other_rest;
            double head = two_sum(high[m], term[m] * upper, &error);
            double tail = two_sum(low[m], error, &rest);
            high[m] = two_sum(head, term[m] * lower, &other_error);
            low[m] = two_sum(tail, other_error, &other_rest);
            lost[m] |= (bits_of_double(rest) | bits_of_double(other_rest)) << 1;
        }
    }
    uint64_t special = 0;
    for (size_t m = 0; m < unsure; m++) {
        double cut, sum = two_sum(high[m], low[m], &cut);
        double result = round_to_odd(sum, cut);
        /* The sign of zero: as IEEE adds. */
        result = (sum == 0) & (plain[m] == 0) ? plain[m] : result;
        lost[m] |= bits_of_double(plain[m]) << 1 >= (uint64_t)0x7FF << 53; /* NaN or infinity */
        special |= lost[m];
        high[m] = result;
    }
    if (special)
        for (size_t m = 0; m < unsure; m++)
            if (lost[m])
                high[m] = sum_one(w, weights, used, count, m);
    if (format == BF16)
        for (size_t m = 0; m < unsure; m++) {
            uint16_t half = odd_to_bf16(high[m]);
            memcpy(out + 2 * (size_t)where[m], &half, 2);
        }
    else
        for (size_t m = 0; m < unsure; m++)
            encode(high[m], format, out + (size_t)where[m] * WIDTH[format]);
}

/* Which of the flags unsure[0..n), each 0 or 1, are set; those behind n up to 64 are cleared. */
INLINE size_t collect(uint8_t *restrict unsure, size_t n, int32_t *restrict where) {
    size_t count = 0;
    for (size_t j = n; j % 64; j++)
        unsure[j] = 0;
    for (size_t begin = 0; begin < n; begin += 64) {
        uint64_t set = 0;
        for (size_t byte = 0; byte < 8; byte++) {
            uint64_t flags;
            memcpy(&flags, unsure + begin + 8 * byte, 8);
            set |= (flags * 0x0102040810204080 >> 56) << 8 * byte; /* eight bytes to eight bits */
        }
        for (; set; set &= set - 1)
            where[count++] = (int32_t)(begin + (size_t)__builtin_ctzll(set));
    }
    return count;
}

/* total[j] = sum_i weights[i] * x[i][j] in the order of the policies, in TYPE; two a sweep. */
#define PLAIN_SUM(TYPE, total)                                                               \
    for (int i = 0; i < count; i += 2) {                                                     \
        const int last = i + 1 == count;                                                     \
        const float *restrict x = w->x + (size_t)used[i] * BLOCK;                            \
        const float *restrict y = last ? x : w->x + (size_t)used[i + 1] * BLOCK;             \
        const TYPE a = (TYPE)weights[used[i]], b = last ? 0 : (TYPE)weights[used[i + 1]];    \
        if (i == 0 && last) /* nothing is added to a zero, which would lose the sign of -0 */ \
            for (size_t j = 0; j < n; j++)                                                   \
                total[j] = a * (TYPE)x[j];                                                   \
        else if (i == 0)                                                                     \
            for (size_t j = 0; j < n; j++)                                                   \
                total[j] = a * (TYPE)x[j] + b * (TYPE)y[j];                                  \
        else if (last)                                                                       \
            for (size_t j = 0; j < n; j++)                                                   \
                total[j] += a * (TYPE)x[j];                                                  \
        else                                                                                 \
            for (size_t j = 0; j < n; j++)                                                   \
                total[j] = total[j] + a * (TYPE)x[j] + b * (TYPE)y[j];                       \
    }

/* Whether every product is a float32 without rounding: multiples of 2^-16 up to 1, such as 1/2 or
 * 3/8, times the 8 bits of a bf16, or of 2^-13 times the 11 of an fp16. */
INLINE int are_short(const double *weights, const int *used, int count, const int *formats) {
    for (int i = 0; i < count; i++) {
        const double weight = weights[used[i]];
        const double scaled = weight * (formats[used[i]] == BF16 ? 0x1p16 : 0x1p13);
        if (formats[used[i]] == F32 || fabs(weight) > 1 || scaled != rint(scaled))
            return 0;
    }
    return 1;
}

/* As PLAIN_SUM, and 0 in lost[j] where nothing was rounded. */
INLINE void sum_short(const struct work *w, const double *weights, const int *used, int count,
                      size_t n) {
    float *restrict total = w->total, *restrict lost = w->lost_floats;
    for (int i = 0; i < count; i++) {
        const float *restrict x = w->x + (size_t)used[i] * BLOCK;
        const float weight = (float)weights[used[i]];
        for (size_t j = 0; j < n; j++) {
            const float product = weight * x[j], before = i ? total[j] : product;
            const float sum = i ? before + product : product, from = sum - before;
            const float error = i ? (before - (sum - from)) + (product - from) : 0;
            lost[j] = (i ? lost[j] : 0) + fabsf(error);
            total[j] = sum;
        }
    }
}

INLINE double largest_weight(const double *weights, const int *used, int count) {
    double largest = 0;
    for (int i = 0; i < count; i++)
        largest = fmax(largest, fabs(weights[used[i]]));
    return largest;
}

/* bf16 and fp16 out. The float32 sum is off by less than (N + 1) 2^-24 max|w| sum|x|: once for
 * the weights' rounding, once for each product, N - 1 times for the sums. In units of its own
 * last place, which is at least 2^-24 of it, that is (N + 1) max|w| sum|x| / |total|; twice
 * that is asked for. It decides where a tie is further away than this, or nothing was rounded. */
INLINE size_t decide(const struct work *w, double largest, int count, int exact, size_t n,
                     int format, uint8_t *restrict out) {
    const float *restrict total = w->total, *restrict size = w->size, *restrict lost = w->lost_floats;
    uint8_t *restrict unsure = w->unsure;
    /* Far from the ends of float32's range nothing over- or underflows unnoticed. */
    const int usual = largest > 0x1p-60 && largest < 0x1p60;
    const float bound = usual ? (float)(2 * (count + 2) * largest) : INFINITY;
    const float least = format == BF16 ? 0x1p-100f : 0x1p-14f;
    const float most = format == BF16 ? 0x1p100f : 0x1p15f;
    const int cut = format == BF16 ? 16 : 13;
    const uint32_t half = 1u << (cut - 1), mask = 2 * half - 1;
    const uint32_t rebias = format == BF16 ? 0 : 112u << 23;
    for (size_t j = 0; j < n; j++) {
        uint32_t bits = bits_of(total[j]), magnitude = bits & 0x7FFFFFFF;
        float value = float_of(magnitude);
        float distance = (float)abs((int32_t)(bits & mask) - (int32_t)half);
        int decided = distance * value >= bound * size[j];
        if (exact)
            decided |= lost[j] == 0;
        int sure = decided & (value >= least) & (value <= most);
        int zero = size[j] == 0; /* then all terms are, and the sum has its sign right */
        uint32_t below_half = half - 1 + (magnitude >> cut & 1); /* a true tie goes to even */
        uint32_t rounded = (magnitude + below_half - rebias) >> cut;
        uint16_t result = (uint16_t)((zero ? 0 : rounded) | (bits >> 16 & 0x8000));
        memcpy(out + 2 * j, &result, 2);
        unsure[j] = (uint8_t)!(sure | zero);
    }
    return collect(unsure, n, w->where);
}

INLINE size_t round_from_float(const struct work *w, const double *weights, const int *used,
                               int count, const int *formats, size_t n, int format,
                               uint8_t *restrict out) {
    const double largest = largest_weight(weights, used, count);
    float *restrict total = w->total;
    if (are_short(weights, used, count, formats)) {
        sum_short(w, weights, used, count, n);
        return decide(w, largest, count, 1, n, format, out);
    }
    PLAIN_SUM(float, total)
    return decide(w, largest, count, 0, n, format, out);
}

/* fp32 out. The float64 sum is off by less than N 2^-52 max|w| sum|x|; it decides where both
 * ends of what that leaves open round to the same number. */
INLINE size_t round_from_double(const struct work *w, const double *weights, const int *used,
                             int count, size_t n, uint8_t *restrict out) {
    double *restrict sums = w->sums;
    const float *restrict size = w->size;
    uint8_t *restrict unsure = w->unsure;
    const double largest = largest_weight(weights, used, count);
    PLAIN_SUM(double, sums)
    const double bound = (count + 1) * 0x1p-52 * largest;
    for (size_t j = 0; j < n; j++) {
        double off = bound * (double)size[j];
        uint32_t below = bits_of((float)(sums[j] - off)), above = bits_of((float)(sums[j] + off));
        float result = (float)sums[j];
        memcpy(out + 4 * j, &result, 4);
        /* An infinite size says nothing, and NaN is never equal. */
        unsure[j] = (uint8_t)!(((below == above) & (off < INFINITY)) | (size[j] == 0));
    }
    return collect(w->unsure, n, w->where);
}

/* Where float64 goes in or comes out, the plain float64 sum. */
INLINE int sum_doubles(const uint8_t *const *chunks, const int *formats, const double *weights,
                       const int *used, int count, int64_t begin, size_t n, int format, uint8_t *out,
                       const struct work *w) {
    for (int i = 0; i < count; i++) {
        const int width = WIDTH[formats[used[i]]];
        const uint8_t *raw = chunks[used[i]] + begin * width;
        const double weight = weights[used[i]];
        if (formats[used[i]] == F64)
            memcpy(w->terms, raw, n * 8);
        else
            for (size_t j = 0; j < n; j++)
                w->terms[j] = w->x[(size_t)used[i] * BLOCK + j];
        if (i == 0)
            for (size_t j = 0; j < n; j++)
                w->sums[j] = weight * w->terms[j];
        else
            for (size_t j = 0; j < n; j++)
                w->sums[j] += weight * w->terms[j];
    }
    for (size_t j = 0; j < n; j++)
        encode(w->sums[j], format, out + j * WIDTH[format]);
    return 0;
}

INLINE int has_nonfinite_double(const uint8_t *raw, size_t n) {
    uint64_t worst = 0;
    for (size_t j = 0; j < n; j++) {
        uint64_t bits;
        memcpy(&bits, raw + 8 * j, 8);
        bits &= 0x7FFFFFFFFFFFFFFF;
        worst = bits > worst ? bits : worst;
    }
    return worst >= 0x7FF0000000000000;
}

/* ---- the entry ----------------------------------------------------------------------------- */

/* chunks: N arrays of `numel` numbers of formats[i], at any alignment; weights: [K, N]; out: K
 * arrays of `format`; nonfinite[i] is set to 1 where chunk i holds NaN or infinity. A policy of
 * weight 0 takes no part. Returns 0, or -1 where there is no memory. */
FOR_EVERY_CPU
int vcsoup_weighted_sum(int64_t numel, int policies, const uint8_t *const *chunks,
                        const int *formats, int soups, const double *weights, int format,
                        uint8_t *const *out, uint8_t *nonfinite) {
    const size_t N = (size_t)policies, floats = (N + 3) * BLOCK, doubles = (N + 5) * BLOCK + 4 * N;
    char *memory = malloc(floats * 4 + doubles * 8 + BLOCK * 5 + N * 4);
    if (!memory)
        return -1;
    struct work w;
    w.terms = (double *)memory;
    w.sums = w.terms + N * BLOCK;
    w.plain = w.sums + BLOCK;
    w.high = w.plain + BLOCK;
    w.low = w.high + BLOCK;
    w.lost = (uint64_t *)(w.low + BLOCK);
    w.spare = w.low + 2 * BLOCK;
    w.x = (float *)(w.spare + 4 * N);
    w.size = w.x + N * BLOCK;
    w.total = w.size + BLOCK;
    w.lost_floats = w.total + BLOCK;
    w.where = (int32_t *)(w.lost_floats + BLOCK);
    int *used = w.where + BLOCK;
    w.unsure = (uint8_t *)(used + N);
    fenv_t before; /* other libraries let subnormal numbers be flushed to zero */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int doubles_only = format == F64;
    for (int i = 0; i < policies; i++)
        doubles_only |= formats[i] == F64;
    memset(nonfinite, 0, N);
    for (int64_t begin = 0; begin < numel; begin += BLOCK) {
        const size_t n = (size_t)(numel - begin < BLOCK ? numel - begin : BLOCK);
        for (int i = 0; i < policies; i++) {
            const uint8_t *raw = chunks[i] + begin * WIDTH[formats[i]];
            if (formats[i] == F64) {
                nonfinite[i] |= has_nonfinite_double(raw, n);
                continue;
            }
            float *x = w.x + (size_t)i * BLOCK;
            nonfinite[i] |= decode_float(raw, formats[i], x, n);
            if (i == 0)
                for (size_t j = 0; j < n; j++)
                    w.size[j] = fabsf(x[j]);
            else
                for (size_t j = 0; j < n; j++)
                    w.size[j] += fabsf(x[j]);
        }
        for (int k = 0; k < soups; k++) {
            const double *row = weights + (size_t)k * N;
            uint8_t *to = out[k] + begin * WIDTH[format];
            int count = 0;
            for (int i = 0; i < policies; i++)
                if (row[i] != 0)
                    used[count++] = i;
            if (count == 0) {
                memset(to, 0, n * WIDTH[format]);
            } else if (count == 1 && row[used[0]] == 1 && formats[used[0]] == format) {
                memcpy(to, chunks[used[0]] + begin * WIDTH[format], n * WIDTH[format]);
            } else if (doubles_only) {
                sum_doubles(chunks, formats, row, used, count, begin, n, format, to, &w);
            } else {
                size_t unsure = format == F32 ? round_from_double(&w, row, used, count, n, to)
                                              : round_from_float(&w, row, used, count, formats, n, format, to);
                if (unsure)
                    sum_exactly(&w, row, used, count, unsure, format, to);
            }
        }
    }
    fesetenv(&before);
    free(memory);
    return 0;
}
