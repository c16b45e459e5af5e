/* main for a fuzz target without libFuzzer. With file names: runs the target on each file. Without: on random
 * bytes, the same ones in every run, for --seconds (10). */
#include <time.h>

#include "gsp_fuzz.h"

static int replay(const char *path) {
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    const size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    return 0;
}

int main(int count, char **words) {
    double seconds = 10;
    int files = 0, missing = 0;
    for (int i = 1; i < count; i++)
        if (strcmp(words[i], "--seconds") == 0 && i + 1 < count) seconds = atof(words[++i]);
        else {
            files++;
            missing += replay(words[i]);
        }
    if (files > 0) return missing > 0;

    uint64_t state = 1;
    long runs = 0;
    for (const time_t start = time(NULL); difftime(time(NULL), start) < seconds; runs++) {
        const size_t size = (size_t)gsp_test_below(&state, runs % 8 ? 128 : 2048);
        uint8_t *data = gsp_test_bytes(size);
        for (size_t i = 0; i < size; i++) data[i] = (uint8_t)gsp_test_below(&state, 256);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    printf("%s: %ld inputs\n", words[0], runs);
    return 0;
}
