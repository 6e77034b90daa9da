package dev.kvasir.internal.llama.gguf;

import dev.kvasir.bindings.generated.NativeApi;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * The types of the tensors. ggml's CPU backend says of every type that it can compute with it, and
 * ends the process in a thread that computes if it cannot.
 */
final class TensorCheck {
  /** Types of intermediate results, and integers: no weight is multiplied in these. */
  private static final Set<Integer> NO_WEIGHTS =
      Set.of(
          NativeApi.GGML_TYPE_Q8_1(),
          NativeApi.GGML_TYPE_Q8_K(),
          NativeApi.GGML_TYPE_I8(),
          NativeApi.GGML_TYPE_I16(),
          NativeApi.GGML_TYPE_I32(),
          NativeApi.GGML_TYPE_I64(),
          NativeApi.GGML_TYPE_F64());

  /** A table of experts by token: numbers of rows, not weights. */
  private static final String TABLE = "tid2eid";

  /**
   * Of more dimensions than one, and yet computed with element by element: norms, biases, short
   * convolutions and what mixes a token with the one before.
   */
  private static final Pattern ELEMENTWISE =
      Pattern.compile(
          ".*(_norm\\.weight|\\.bias|\\.(ssm_a|ssm_d|ssm_conv1d\\w*|shortconv\\.conv|ple_conv1d"
              + "|(time|channel)_mix_lerp_\\w+|time_mix_first|(attn|ffn)_conv_base)(\\.weight)?)");

  private TensorCheck() {}

  /**
   * Checks the tensors of a file.
   *
   * @throws dev.kvasir.ModelLoadException if one has a type that cannot be computed with
   */
  static void check(Header header) {
    for (TensorInfo tensor : header.tensors()) {
      if (NO_WEIGHTS.contains(tensor.type()) && !tensor.name().contains(TABLE)) {
        throw header.refused(
            "the tensor " + tensor.describe(),
            "of the type " + tensor.typeName(),
            "no weight can be of that type");
      }
      boolean elementwise =
          tensor.dimensions() <= 1 || ELEMENTWISE.matcher(tensor.name()).matches();
      if (elementwise && tensor.type() != NativeApi.GGML_TYPE_F32()) {
        throw header.refused(
            "the tensor " + tensor.describe(),
            "of the type " + tensor.typeName(),
            "what is added or multiplied element by element must be f32");
      }
    }
  }
}
