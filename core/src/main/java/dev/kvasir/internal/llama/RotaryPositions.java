package dev.kvasir.internal.llama;

import dev.kvasir.ModelLoadException;
import dev.kvasir.bindings.generated.NativeApi;
import dev.kvasir.internal.llama.gguf.AttentionShape;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;

/**
 * What ggml's rotation asserts in a thread that computes, where the process ends. Whether a model
 * is rotated at all, and by several positions, llama.cpp knows by its architecture.
 */
final class RotaryPositions {
  /** ggml's bit for several positions a token, each of which turns a section of the pairs. */
  private static final int SECTIONS = 8;

  private RotaryPositions() {}

  /**
   * Checks a loaded model.
   *
   * @throws ModelLoadException if it cannot be rotated as its header says
   */
  static void require(MemorySegment model, AttentionShape shape, Path file) {
    int type = NativeApi.llama_model_rope_type(model);
    int queryHeads = NativeApi.llama_model_n_head(model);
    if (type < 0 || queryHeads == 0) {
      return;
    }
    int head = shape.keyLength(NativeApi.llama_model_n_embd(model) / queryHeads);
    int rotated = shape.rotated(head);
    if (rotated % 2 != 0) {
      throw refused(file, "rotary positions turn pairs of elements, but a head has " + rotated);
    }
    if ((type & SECTIONS) != 0 && (shape.positionSections() == 0 || shape.sections() > head)) {
      throw refused(
          file,
          "the first three of rope.dimension_sections must not all be 0, and their sum, which is "
              + shape.sections()
              + ", not above the "
              + head
              + " elements of a head");
    }
  }

  private static ModelLoadException refused(Path file, String reason) {
    return new ModelLoadException("The model file " + file + " cannot be used: " + reason + ".");
  }
}
