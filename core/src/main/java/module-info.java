import org.jspecify.annotations.NullMarked;

/** Adaptive KV-cache compression for llama.cpp models, as a Java library. */
@NullMarked
module dev.kvasir {
  requires static transitive org.jspecify;
  requires com.fasterxml.jackson.databind;
  requires dev.kvasir.bindings;
  requires jdk.management;

  exports dev.kvasir;
  exports dev.kvasir.cache;
}
