package dev.kvasir.internal.llama.gguf;

import dev.kvasir.ModelLoadException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * The header of a GGUF file.
 *
 * @param size bytes of the file
 * @param data where the tensors' data begin
 */
record Header(
    Path file, long size, Map<String, Value> values, List<TensorInfo> tensors, long data) {

  @Nullable Value get(String key) {
    return values.get(key);
  }

  /** The text of a key; null if there is none, or it is no text. */
  @Nullable String text(String key) {
    return values.get(key) instanceof Value.Text(String text) ? text : null;
  }

  /**
   * The value of a key that llama.cpp reads as an unsigned 32-bit number.
   *
   * @return null if there is no such key
   * @throws ModelLoadException if it is of another type
   */
  @Nullable Long unsigned(String key) {
    Value value = values.get(key);
    if (value == null) {
      return null;
    }
    if (value instanceof Value.Scalar(ValueType type, long bits) && type == ValueType.UINT32) {
      return bits;
    }
    throw refused(key, value.describe(), "it must be a number of the type uint32");
  }

  /** The exception for a value that is wrong: which, what it is, and what would be right. */
  ModelLoadException refused(String key, Object value, String right) {
    return refused(key + " is " + value + "; " + right);
  }

  ModelLoadException refused(String reason) {
    return new ModelLoadException("The model file " + file + " cannot be used: " + reason + ".");
  }
}
