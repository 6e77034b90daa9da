/* A library that loads another one while it is loaded itself: a lock of the loader is held all the while, and a second one wanted. */
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void load_another(void) {
    usleep(20000);
    void * another = dlopen(getenv("KVASIR_TEST_ANOTHER"), RTLD_NOW | RTLD_LOCAL);
    if (another) {
        dlclose(another);
    }
}
