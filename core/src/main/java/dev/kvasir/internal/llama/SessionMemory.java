package dev.kvasir.internal.llama;

import com.sun.management.OperatingSystemMXBean;
import dev.kvasir.DeviceType;
import dev.kvasir.InvalidOptionException;
import dev.kvasir.SessionOptions;
import dev.kvasir.bindings.generated.NativeApi;
import java.lang.management.ManagementFactory;
import java.util.Locale;

/**
 * What the cells of a context cost of the machine's memory before a single token is in them.
 * llama.cpp fills its books when it makes a context, and where they do not fit the system ends the
 * process: so this is asked before.
 */
final class SessionMemory {
  /** What llama.cpp writes down of a cell: position, shift and sequences; measured. */
  private static final long CELL_BYTES = 66;

  /** An element of the attention mask. */
  private static final long MASK_BYTES = 2;

  /** Less is not worth asking the system for: a machine that holds a model has it. */
  private static final long ALWAYS_THERE = 256L << 20;

  private SessionMemory() {}

  /**
   * Refuses a context that this machine cannot hold.
   *
   * @param cells of all sequences together
   * @throws InvalidOptionException if it needs more than there is
   */
  static void require(
      NativeModel model, SessionOptions options, long cells, int sequences, int microBatchSize) {
    long needed = needed(model, options, cells, sequences, microBatchSize);
    if (needed <= ALWAYS_THERE) {
      return;
    }
    long memory = ofMachine();
    if (memory > 0 && needed > memory) {
      throw new InvalidOptionException(
          "A contextSize of %d tokens%s needs about %s of memory before the first token, and this machine has %s. Use a smaller contextSize."
              .formatted(
                  cells / sequences,
                  sequences == 1 ? "" : " for each of " + sequences + " sequences",
                  gigabytes(needed),
                  gigabytes(memory)));
    }
  }

  /** A lower bound, in bytes. */
  private static long needed(
      NativeModel model, SessionOptions options, long cells, int sequences, int microBatchSize) {
    if (NativeApi.llama_model_is_recurrent(model.handle())) {
      return 0; // one state a sequence, and no cells
    }
    // llama.cpp allocates the mask of a micro-batch over all cells of a sequence in one piece.
    long mask = cells / sequences * microBatchSize * MASK_BYTES;
    // Which layers have a window or a recurrent state, and few cells or none, is not known here.
    boolean cellsInAllLayers = model.window() == 0 && !model.recurrent();
    long rows =
        model.adaptive() || !cellsInAllLayers
            ? 0 // Kvasir's rows take memory with the tokens
            : PlainCache.cellBytes(
                model, options, layer -> model.deviceOf(layer).type() == DeviceType.CPU);
    return cells * (CELL_BYTES + rows) + mask;
  }

  /** Bytes, or what the container may use of them; 0 if unknown. */
  private static long ofMachine() {
    OperatingSystemMXBean system = ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class);
    return system == null ? 0 : system.getTotalMemorySize();
  }

  private static String gigabytes(long bytes) {
    return String.format(Locale.ROOT, "%.1f GiB", bytes / (double) (1L << 30));
  }
}
