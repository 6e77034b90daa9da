package dev.kvasir.internal.llama;

import dev.kvasir.bindings.generated.NativeApi;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/** What a {@code kvasir_status} and the texts around it say. */
final class NativeStatus {
  private NativeStatus() {}

  static boolean ok(int status) {
    return status == NativeApi.KVASIR_OK();
  }

  static String name(int status) {
    if (status == NativeApi.KVASIR_OK()) {
      return "ok";
    } else if (status == NativeApi.KVASIR_INVALID_ARGUMENT()) {
      return "invalid argument";
    } else if (status == NativeApi.KVASIR_UNSUPPORTED()) {
      return "unsupported";
    } else if (status == NativeApi.KVASIR_OUT_OF_MEMORY()) {
      return "out of memory";
    } else if (status == NativeApi.KVASIR_NOT_INTERCEPTED()) {
      return "not intercepted";
    } else if (status == NativeApi.KVASIR_INCOMPATIBLE()) {
      return "incompatible";
    }
    return "failed";
  }

  /** Kvasir's own text about the last call of this thread that failed. */
  static String text(int status) {
    MemorySegment text = NativeApi.kvasir_last_error();
    String own = text.address() == 0 ? "" : text.getString(0).strip();
    return own.isEmpty() ? name(status) : own;
  }

  /**
   * Why the last call of this thread failed: Kvasir's own text, then what llama.cpp logged as an
   * error meanwhile.
   */
  static String reason(int status) {
    List<String> parts = new ArrayList<>();
    String own = text(status);
    parts.add(own);
    for (String line : NativeLog.errors()) {
      if (!own.contains(line.strip())) {
        parts.add(line.strip());
      }
    }
    return String.join("; ", parts);
  }
}
