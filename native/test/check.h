// What the native tests share: checks that go on after a failure, and an exit status that says whether there was one.
#pragma once

#include <cstdio>

namespace check {

inline int & failures() {
    static int n = 0;
    return n;
}

inline int & count() {
    static int n = 0;
    return n;
}

inline int finish(const char * what) {
    printf("%s: %d checks, %d failed\n", what, count(), failures());
    return failures() == 0 ? 0 : 1;
}

} // namespace check

#define CHECK(condition, ...)                                              \
    do {                                                                   \
        check::count()++;                                                  \
        if (!(condition)) {                                                \
            check::failures()++;                                           \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);         \
            printf(__VA_ARGS__);                                           \
            printf("\n");                                                  \
        }                                                                  \
    } while (0)
