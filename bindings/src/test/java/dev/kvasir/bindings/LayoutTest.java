package dev.kvasir.bindings;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import dev.kvasir.bindings.generated.NativeApi;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.GroupLayout;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.PaddingLayout;
import java.lang.foreign.UnionLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * The generated layouts and constants against the C compiler: a program over the same headers
 * prints every size, offset and value that Java believes in.
 */
class LayoutTest {
  /** What Java says, by the C expression for it. */
  private static final Map<String, Long> expected = new TreeMap<>();

  private static final Map<String, Long> compiled = new TreeMap<>();

  @BeforeAll
  static void compile(@TempDir Path scratch) throws Exception {
    for (String struct : IncludeList.names("struct")) {
      MemoryLayout layout = layout(struct);
      expected.put("sizeof(struct " + struct + ")", layout.byteSize());
      expected.put("_Alignof(struct " + struct + ")", layout.byteAlignment());
      members(struct, (GroupLayout) layout, 0);
    }
    for (String constant : IncludeList.names("constant")) {
      expected.put(constant, value(constant));
    }

    StringBuilder program =
        new StringBuilder("#include \"bindings.h\"\n#include <stdio.h>\nint main(void) {\n");
    for (String expression : expected.keySet()) {
      program
          .append("    printf(\"%lld %s\\n\", (long long) (")
          .append(expression)
          .append("), \"")
          .append(expression)
          .append("\");\n");
    }
    program.append("}\n");

    Path source = Files.writeString(scratch.resolve("layout.c"), program);
    String llama = run("../native/llama.cpp/fetch", "source").strip();
    Path executable = scratch.resolve("layout");
    run(
        "cc",
        "-std=c11",
        "-I" + Path.of("jextract").toAbsolutePath(),
        "-I" + Path.of("../native/include").toAbsolutePath(),
        "-I" + llama + "/include",
        "-I" + llama + "/ggml/include",
        "-o",
        executable.toString(),
        source.toString());
    for (String line : run(executable.toString()).lines().toList()) {
      String[] fields = line.split(" ", 2);
      compiled.put(fields[1], Long.valueOf(fields[0]));
    }
  }

  @Test
  void everyStructHasTheCompilersSizeAndAlignment() {
    compare("sizeof", "_Alignof");
  }

  @Test
  void everyFieldHasTheCompilersOffsetAndSize() {
    compare("offsetof", "(sizeof");
  }

  @Test
  void everyConstantHasTheCompilersValue() {
    compare("LLAMA_", "GGML_", "GGUF_", "KVASIR_");
  }

  private static void compare(String... prefixes) {
    Map<String, Long> java = new TreeMap<>();
    Map<String, Long> c = new TreeMap<>();
    expected.forEach(
        (expression, value) -> {
          for (String prefix : prefixes) {
            if (expression.startsWith(prefix)) {
              java.put(expression, value);
              c.put(expression, compiled.get(expression));
            }
          }
        });
    assertFalse(java.isEmpty());
    assertEquals(lines(c), lines(java));
  }

  private static String lines(Map<String, Long> values) {
    StringBuilder text = new StringBuilder();
    values.forEach(
        (expression, value) -> text.append(expression).append(" = ").append(value).append('\n'));
    return text.toString();
  }

  private static void members(String struct, GroupLayout group, long base) {
    long offset = base;
    for (MemoryLayout member : group.memberLayouts()) {
      if (!(member instanceof PaddingLayout)) {
        String name = member.name().orElse("");
        if (member instanceof GroupLayout anonymous && !isField(struct, name)) {
          members(struct, anonymous, offset);
        } else {
          expected.put("offsetof(struct " + struct + ", " + name + ")", offset);
          expected.put("(sizeof(((struct " + struct + " *) 0)->" + name + "))", member.byteSize());
        }
      }
      if (!(group instanceof UnionLayout)) {
        offset += member.byteSize();
      }
    }
  }

  // jextract gives an anonymous union a name of its own, which has no accessor.
  private static boolean isField(String struct, String name) {
    for (var method : type(struct).getMethods()) {
      if (method.getName().equals(name)) {
        return true;
      }
    }
    return false;
  }

  private static Class<?> type(String struct) {
    try {
      return Class.forName(NativeApi.class.getPackageName() + "." + struct);
    } catch (ClassNotFoundException e) {
      throw new LinkageError("no class was generated for struct " + struct, e);
    }
  }

  private static MemoryLayout layout(String struct) {
    try {
      return (MemoryLayout) type(struct).getMethod("layout").invoke(null);
    } catch (ReflectiveOperationException e) {
      throw new LinkageError("struct " + struct + " has no layout", e);
    }
  }

  // A constant above Integer.MAX_VALUE is an int in Java: its bits are what is compared.
  private static long value(String constant) {
    try {
      Object value = NativeApi.class.getMethod(constant).invoke(null);
      return switch (value) {
        case Integer i when constant.equals("LLAMA_DEFAULT_SEED") -> Integer.toUnsignedLong(i);
        case Number n -> n.longValue();
        default -> throw new AssertionError(constant + " is no number: " + value);
      };
    } catch (ReflectiveOperationException e) {
      throw new LinkageError("no constant was generated for " + constant, e);
    }
  }

  private static String run(String... command) {
    try {
      List<String> words = new ArrayList<>(List.of(command));
      Process process =
          new ProcessBuilder(words).redirectError(ProcessBuilder.Redirect.INHERIT).start();
      String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertEquals(0, process.waitFor(), () -> String.join(" ", words));
      return output;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException(e);
    }
  }
}
