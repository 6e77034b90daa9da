// To be preloaded where the Vulkan device may be Mesa 22's lavapipe. That driver follows every descriptor of a set when it
// binds it, also those that no shader of the moment uses. ggml-vulkan uses its sets again and writes only the descriptors that
// the next shader needs, as Vulkan allows; what is left in the others may name a buffer that is gone, and the driver counts
// references in memory that is someone else's by then. So lavapipe's buffers stay: their handles, not the memory that was
// bound to them. Other drivers' go.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

typedef void (*function)(void);
typedef function (*get_proc_addr)(void * instance_or_device, const char * name);
typedef void (*destroy_buffer)(void * device, void * buffer, const void * allocator);

static get_proc_addr of_instance, of_device;

static void destroy_unless_lavapipe(void * device, void * buffer, const void * allocator) {
    const destroy_buffer driver = (destroy_buffer) of_device(device, "vkDestroyBuffer");
    Dl_info              library;
    if (dladdr((void *) driver, &library) == 0 || strstr(library.dli_fname, "libvulkan_lvp") == NULL) {
        driver(device, buffer, allocator);
    }
}

// stands before the loader's, which nobody but ggml-vulkan need have loaded
__attribute__((visibility("default"))) function vkGetInstanceProcAddr(void * instance, const char * name) {
    if (of_instance == NULL) {
        void * loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
        if (loader == NULL) {
            return NULL;
        }
        of_instance = (get_proc_addr) dlsym(loader, "vkGetInstanceProcAddr");
        of_device   = (get_proc_addr) dlsym(loader, "vkGetDeviceProcAddr");
    }
    return strcmp(name, "vkDestroyBuffer") == 0 ? (function) destroy_unless_lavapipe : of_instance(instance, name);
}
