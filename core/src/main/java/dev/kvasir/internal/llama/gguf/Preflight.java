package dev.kvasir.internal.llama.gguf;

import dev.kvasir.ModelLoadException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * What is known of a model file before llama.cpp sees it.
 *
 * @param bytes size of the file; of a split model, of all its parts
 * @param attention its heads
 * @param positions that it has learned, one by one; 0 if it has a rule for any position
 */
public record Preflight(long bytes, AttentionShape attention, long positions) {
  /** The table of a model that adds a vector to each position. */
  private static final String POSITIONS = "position_embd.weight";

  /** Number of layers that its header names; 0 when it does not. */
  public int layers() {
    return attention.layers();
  }

  /** How llama.cpp's tools name the parts of a split model. */
  private static final Pattern FIRST_PART = Pattern.compile("(.+)-00001-of-([0-9]{5})\\.gguf");

  private static final String PART = "split.no";
  private static final String PARTS = "split.count";

  /**
   * Reads the header of a model, of each part of a split one, and checks whatever llama.cpp does
   * not survive.
   *
   * @throws ModelLoadException if the file is missing, no GGUF file, cut off, or says something
   *     that cannot be
   */
  public static Preflight of(Path file) {
    if (!Files.exists(file)) {
      throw new ModelLoadException("The model file " + file + " does not exist.");
    }
    if (!Files.isRegularFile(file)) {
      throw new ModelLoadException("The model " + file + " is not a file.");
    }
    Header header = HeaderReader.read(file);
    String architecture = architecture(header);
    AttentionShape attention = GeometryCheck.check(header, architecture);
    VocabularyCheck.check(header, architecture);
    TensorCheck.check(header);
    long positions =
        header.tensors().stream()
            .filter(tensor -> tensor.name().equals(POSITIONS))
            .mapToLong(TensorInfo::rows)
            .findFirst()
            .orElse(0);
    return new Preflight(header.size() + otherParts(header), attention, positions);
  }

  private static String architecture(Header header) {
    if ("adapter".equals(header.text("general.type"))) {
      throw header.refused("it is an adapter (LoRA), not a model");
    }
    String architecture = header.text("general.architecture");
    if (architecture == null) {
      throw header.refused("its header does not name an architecture (general.architecture)");
    }
    if (part(header) > 0) {
      throw header.refused("it is a part of a split model; load its first part");
    }
    if (header.tensors().isEmpty()) {
      throw header.refused("it holds no tensors, only the header of a " + architecture + " model");
    }
    return architecture;
  }

  private static int part(Header header) {
    return sixteenBits(header, PART);
  }

  private static int sixteenBits(Header header, String key) {
    Value value = header.get(key);
    if (value == null) {
      return 0;
    }
    if (value instanceof Value.Scalar(ValueType type, long bits) && type == ValueType.UINT16) {
      return (int) bits;
    }
    throw header.refused(key, value.describe(), "it must be a number of the type uint16");
  }

  /** Checks the other parts of a split model; returns their size. */
  private static long otherParts(Header first) {
    int parts = sixteenBits(first, PARTS);
    if (parts <= 1) {
      return 0;
    }
    Path file = first.file();
    Matcher name = FIRST_PART.matcher(file.getFileName().toString());
    if (!name.matches() || Integer.parseInt(name.group(2)) != parts) {
      throw first.refused(
          PARTS, parts, "its name must end in -00001-of-%05d.gguf".formatted(parts));
    }
    Set<String> tensors = new HashSet<>();
    first.tensors().forEach(tensor -> tensors.add(tensor.name()));
    long sum = 0;
    for (int part = 2; part <= parts; part++) {
      Path other =
          file.resolveSibling("%s-%05d-of-%s.gguf".formatted(name.group(1), part, name.group(2)));
      if (!Files.isReadable(other)) {
        throw new ModelLoadException(
            "The model file "
                + file
                + " is the first of "
                + parts
                + ", and "
                + other
                + " cannot be read. Put all parts into one directory.");
      }
      Header header = HeaderReader.read(other);
      if (header.get(PART) == null || part(header) != part - 1) {
        throw header.refused(
            PART,
            header.get(PART) == null ? "missing" : part(header),
            "in part %d of %d it must be %d".formatted(part, parts, part - 1));
      }
      TensorCheck.check(header);
      for (TensorInfo tensor : header.tensors()) {
        if (!tensors.add(tensor.name())) {
          throw header.refused("its tensor " + tensor.name() + " is in another part, too");
        }
      }
      sum += header.size();
    }
    return sum;
  }
}
