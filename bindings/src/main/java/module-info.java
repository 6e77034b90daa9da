/**
 * The C interfaces of llama.cpp, ggml and Kvasir's native library as jextract sees them, and the
 * code that finds and loads the libraries. Nothing here knows of models, sessions or policies.
 */
module dev.kvasir.bindings {
  requires static org.jspecify;

  exports dev.kvasir.bindings;
  exports dev.kvasir.bindings.generated to
      dev.kvasir;
}
