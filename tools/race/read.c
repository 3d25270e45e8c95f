/* Reads memory as fast as one core can: eight independent sums of 64 bytes each, nothing written.
 *
 * Built at the first race and called from one thread per core. It is the roofline: whoever multiplies weights has to
 * read them at least. */
#include <stddef.h>
#include <stdint.h>

typedef int64_t line __attribute__((vector_size(64)));

int64_t read_all(const line *at, size_t bytes, int laps) {
    line sums[8] = {{0}};
    size_t lines = bytes / 64 / 8 * 8;
    for (int lap = 0; lap < laps; lap++) {
        for (size_t i = 0; i < lines; i += 8)
            for (int k = 0; k < 8; k++) {
                __builtin_prefetch((const char *)(at + i + k) + 2048, 0, 3);
                sums[k] += at[i + k];
            }
        /* A lap is not to be folded into the next one. */
        __asm__ volatile("" ::: "memory");
    }
    int64_t sum = 0;
    for (int k = 0; k < 8; k++)
        for (int j = 0; j < 8; j++) sum += sums[k][j];
    return sum;
}
