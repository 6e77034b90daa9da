// Which of the loaded libraries of llama.cpp libkvasir takes its functions from. This program is linked to none: each scenario, a process
// of its own, loads them as a JVM does.
#include "check.h"

#include "kvasir.h"

#include "ggml-backend.h"
#include "ggml-backend-impl.h"
#include "llama.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

namespace fs = std::filesystem;

namespace {

void * load(const fs::path & path) {
    void * library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr, "%s", dlerror());
    return library;
}

fs::path find(const fs::path & folder, const std::string & beginning) {
    for (const auto & file : fs::directory_iterator(folder)) {
        if (file.path().filename().string().rfind(beginning, 0) == 0) {
            return file.path();
        }
    }
    CHECK(false, "there is no %s in %s", beginning.c_str(), folder.c_str());
    return {};
}

// those that the rest depends on first; returns libllama
void * load_llama(const fs::path & folder) {
    load(find(folder, "libggml-base."));
    void * ggml = load(find(folder, "libggml."));
    auto   load_all = (decltype(&ggml_backend_load_all_from_path)) dlsym(ggml, "ggml_backend_load_all_from_path");
    CHECK(load_all != nullptr, "%s", dlerror());
    load_all(folder.c_str());
    return load(find(folder, "libllama."));
}

// Which libraries there are is looked up while another thread loads some, and holds a lock of the loader.
void while_loading(const fs::path & others) {
    setenv("KVASIR_TEST_ANOTHER", (others / "libggml-global.so").c_str(), 1);
    std::atomic<bool> loaded{false};
    std::thread       loader([&] {
        for (int i = 0; i < 10; i++) {
            usleep(5000); // else it has the lock all the time
            if (void * library = dlopen((others / "libloads-another.so").c_str(), RTLD_NOW | RTLD_LOCAL)) {
                dlclose(library);
            }
        }
        loaded = true;
    });
    bool refused = true;
    while (!loaded) {
        refused = refused && kvasir_init() == KVASIR_INCOMPATIBLE;
    }
    loader.join();
    CHECK(refused, "%s", kvasir_last_error());
    CHECK(strstr(kvasir_last_error(), "load ggml and llama.cpp"), "%s", kvasir_last_error());
}

// All functions are those of the build that has the right version, though another one has been there before.
void beside_another(const fs::path & folder) {
    void * llama    = load_llama(folder);
    auto   defaults = (decltype(&llama_model_default_params)) dlsym(llama, "llama_model_default_params");
    CHECK(kvasir_init() == KVASIR_OK, "%s", kvasir_last_error());
    const llama_model_params params = defaults();
    llama_model *            model  = nullptr;
    CHECK(kvasir_model_load("no such file", &params, &model) == KVASIR_FAILED && !model, "a function of the other build was called");
}

// A device of that backend, as far as a proxy asks about it before there is a model.
void virtual_devices(const fs::path & folder) {
    static ggml_backend_device device{};
    static ggml_backend_reg    backend{};
    backend.api_version         = GGML_BACKEND_API_VERSION;
    backend.iface.get_name      = [](ggml_backend_reg_t) { return "CUDA"; };
    backend.iface.get_device_count = [](ggml_backend_reg_t) { return (size_t) 1; };
    backend.iface.get_device    = [](ggml_backend_reg_t, size_t) { return &device; };
    device.iface.get_name       = [](ggml_backend_dev_t) { return "CUDA0"; };
    device.iface.get_description = [](ggml_backend_dev_t) { return "a device that stands in for one"; };
    device.iface.get_type       = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    device.reg                  = &backend;
    load_llama(folder);
    auto add = (decltype(&ggml_backend_register)) dlsym(load(find(folder, "libggml.")), "ggml_backend_register");
    CHECK(add != nullptr, "%s", dlerror());
    add(&backend);
    ggml_backend_device * proxy = nullptr;
    CHECK(kvasir_device("CUDA0", &proxy) == KVASIR_OK && proxy, "%s", kvasir_last_error());
    setenv("GGML_CUDA_DEVICES", "4", 1);
    proxy = nullptr;
    CHECK(kvasir_device("CUDA0", &proxy) == KVASIR_UNSUPPORTED && !proxy && strstr(kvasir_last_error(), "GGML_CUDA_DEVICES"), "%s", kvasir_last_error());
    CHECK(kvasir_device("CPU", &proxy) == KVASIR_OK && proxy, "%s", kvasir_last_error());
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: libraries_test SCENARIO FOLDER_OF_LLAMA_CPP_LIBRARIES FOLDER_FOR_A_COPY FOLDER_OF_OTHER_LIBRARIES\n");
        return 2;
    }
    alarm(120); // a dead-lock ends
    const std::string scenario = argv[1];
    const fs::path    folder = argv[2], copy = argv[3], others = argv[4];
    if (scenario == "loading") {
        fs::create_directories(copy);
        for (int i = 0; i < 200; i++) { // to be looked through
            const fs::path file = copy / ("libggml-nothing" + std::to_string(i) + ".so");
            fs::copy_file(others / "libggml-nothing.so", file, fs::copy_options::overwrite_existing);
            load(file);
        }
        while_loading(others);
        fs::remove_all(copy);
    } else if (scenario == "beside") {
        load(others / "libllama-other.so");
        beside_another(folder);
    } else if (scenario == "version") {
        load(others / "libllama-other.so");
        CHECK(kvasir_init() == KVASIR_INCOMPATIBLE && strstr(kvasir_last_error(), "version 0.4.0") && strstr(kvasir_last_error(), "libllama-other.so"), "%s", kvasir_last_error());
    } else if (scenario == "twice") {
        fs::create_directories(copy);
        for (const char * name : {"libggml-base.", "libggml.", "libllama."}) {
            const fs::path file = find(folder, name);
            fs::copy_file(file, copy / file.filename(), fs::copy_options::overwrite_existing);
        }
        load_llama(folder);
        load_llama(copy);
        CHECK(kvasir_init() == KVASIR_INCOMPATIBLE && strstr(kvasir_last_error(), "several builds") && strstr(kvasir_last_error(), copy.c_str()), "%s", kvasir_last_error());
        fs::remove_all(copy);
    } else if (scenario == "global") { // the functions of ggml that libllama finds are not those that it is linked to
        dlopen((others / "libggml-global.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
        load_llama(folder);
        CHECK(kvasir_init() == KVASIR_INCOMPATIBLE && strstr(kvasir_last_error(), "libggml-global.so"), "%s", kvasir_last_error());
    } else if (scenario == "devices") {
        virtual_devices(folder);
    }
    printf("  %s\n", kvasir_last_error());
    return check::finish(scenario.c_str());
}
