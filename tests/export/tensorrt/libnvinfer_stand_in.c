/* Stands in for libnvinfer and libnvonnxparser, so that TensorRT's Python bindings can be imported without them: every
   call goes to TensorRT-RTX's libraries, which have the same entry points. For tests of the Python layer only. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static void* find(const char* library, const char* name) {
    void* handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    void* symbol = handle ? dlsym(handle, name) : NULL;
    if (!symbol) {
        fprintf(stderr, "%s: %s\n", name, dlerror());
        abort();
    }
    return symbol;
}

#define FORWARD(library, result, name, parameters, arguments) \
    result name parameters { return ((result(*) parameters) find(library, #name)) arguments; }

#define CORE "libtensorrt_rtx.so.1"
#define PARSER "libtensorrt_onnxparser_rtx.so.1"

FORWARD(CORE, void*, createInferBuilder_INTERNAL, (void* logger, int version), (logger, version))
FORWARD(CORE, void*, createInferRefitter_INTERNAL, (void* engine, void* logger, int version), (engine, logger, version))
FORWARD(CORE, void*, createInferRuntime_INTERNAL, (void* logger, int version), (logger, version))
FORWARD(CORE, void*, getBuilderPluginRegistry, (int capability), (capability))
FORWARD(CORE, void*, getPluginRegistry, (void), ())
FORWARD(PARSER, void*, createNvOnnxParser_INTERNAL, (void* network, void* logger, int version), (network, logger, version))
FORWARD(PARSER, void*, createNvOnnxParserRefitter_INTERNAL, (void* refitter, void* logger, int version),
        (refitter, logger, version))
FORWARD(PARSER, int, getNvOnnxParserVersion, (void), ())

bool initLibNvInferPlugins(void* logger, const char* library_namespace) {
    (void)logger;
    (void)library_namespace;
    return true;
}
