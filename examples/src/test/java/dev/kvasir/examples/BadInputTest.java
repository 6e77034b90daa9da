package dev.kvasir.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Every mistake ends with one line on standard error and an exit code that says whose mistake it
 * was.
 */
class BadInputTest {
  @TempDir private Path directory;

  private static void expect(int exitCode, String telling, CommandLineRun run) {
    assertEquals(exitCode, run.exitCode(), run::err);
    assertEquals("", run.out());
    assertEquals(1, run.err().lines().count(), run::err);
    assertTrue(run.err().startsWith("kvasir: "), run::err);
    assertTrue(run.err().contains(telling), run::err);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "| A command is missing",
        "dance | dance",
        "chat --no-such-option | --no-such-option",
        "chat -n many | predict",
        "chat -n -2 | --predict",
        "chat -c -1 | --ctx-size",
        "chat -t 9999 | --threads",
        "chat -ctk q9_9 | q8_0",
        "chat -ngl some | layers",
        "chat --top-p 3 | --top-p",
        "chat --kv-policy best | --kv-policy",
        "chat --kv-budget 0.5 | 50%",
        "chat --kv-budget 120% | full cache",
        "chat --kv-budget lots | 512M",
        "chat --kv-limit 50% | 512M",
        "chat --kv-limit lots | 512M",
        "chat --kv-limit -1 | --kv-limit",
        "chat --kv-limit 0.5 | units",
        "chat --kv-recovery 2 | between 0 and 1",
        "chat --kv-local 7 | --kv-local",
        "chat --kv-recovery 0.9 --kv-budget 50% | exclude each other",
        "chat --kv-policy full --kv-sinks 2 | --kv-policy fastgen",
        "chat --kv-policy none --kv-budget 50% | --kv-policy full or fastgen",
        "chat --kv-policy none --kv-limit 50M | --kv-policy full or fastgen",
        "chat --kv-policy full --kv-save-profile p.json | --kv-policy fastgen",
        "chat --kv-policy foresight --kv-save-profile p.json | --kv-policy fastgen",
        "chat --kv-profile p.json --kv-score sum | --kv-profile",
        "chat --kv-policy foresight --kv-recovery 0.9 | --kv-policy fastgen",
        "chat --kv-policy foresight --kv-sinks 2 | --kv-policy fastgen",
        "chat --kv-policy foresight --kv-profile p.json | --kv-policy fastgen",
        "chat --kv-policy foresight --kv-budget 512M | 35%",
        "chat --kv-policy foresight --kv-statistic c/3 | c/8",
        "chat --kv-policy foresight --kv-statistic u,c | one statistic",
        "chat --kv-recovery 0.9 --kv-statistic u | --kv-policy foresight",
        "chat --kv-policy full --kv-head-weights w.json | --kv-policy foresight",
        "profile | --file",
        "profile -f text --kv-policy full | profile",
        "bench --kv-policy full | --kv-policy",
        "bench --kv-statistic u | --kv-policy foresight",
        "bench --kv-policy foresight --kv-sinks 2 | --kv-policy fastgen",
        "bench --kv-policy foresight --kv-budget 5M | 35%",
        "bench --kv-policy foresight --kv-recovery 0.9 | 35%",
        "bench -r 0 | -r",
        "bench -p -5 | -p",
        "bench -pg 512 | -pg",
        "bench -pg 512,0 | 512,128",
        "bench -pg 512,8,1 | 512,128",
        "bench -o xml | --output",
        "eval -f text --methods magic | magic",
        "eval -f text --kv-budget 5M | --kv-budget",
        "eval -f text --methods foresight --kv-budget 5M | --kv-budget",
        "eval -f text --kv-statistic u | --methods foresight",
        "eval -f text --kv-types q9_9 | q8_0",
        "eval -f text --kv-types f16 -ctk q8_0 | --kv-types",
        "eval -f text --turns 0 | --turns",
        "eval -f text --task dance | --task",
        "eval -f text --task codes -n 64 | --task codes",
        "eval -f text -n 0 | -n"
      })
  void wrongUsageIsExitCode2(String commandAndHint) {
    var parts = List.of(commandAndHint.split("\\|", -1));
    var command = parts.getFirst().strip();
    expect(
        2,
        parts.getLast().strip(),
        CommandLineRun.of(command.isEmpty() ? new String[0] : command.split(" ", -1)));
  }

  @Test
  void missingModel() {
    expect(
        1,
        "none.gguf",
        CommandLineRun.of("chat", "-p", "Hi", "-m", directory.resolve("none.gguf").toString()));
  }

  @Test
  void aTextIsNoModel() throws IOException {
    var file = Files.writeString(directory.resolve("text.gguf"), "This is no model.");
    expect(1, "text.gguf", CommandLineRun.of("chat", "-p", "Hi", "-m", file.toString()));
  }

  @Test
  void unknownDevice() {
    expect(1, "Abacus0", CommandLineRun.onModel("", "chat", "-p", "Hi", "-dev", "Abacus0"));
  }

  @Test
  void missingAndEmptyAndUnreadableTexts() throws IOException {
    expect(
        1,
        "does not exist",
        CommandLineRun.of("profile", "-f", directory.resolve("none.txt").toString()));
    var empty = Files.writeString(directory.resolve("empty.txt"), " \n");
    expect(1, "is empty", CommandLineRun.of("chat", "-f", empty.toString()));
    var binary =
        Files.write(directory.resolve("binary.txt"), new byte[] {(byte) 0xC3, (byte) 0x28});
    expect(1, "no UTF-8", CommandLineRun.of("chat", "-f", binary.toString()));
  }

  @Test
  void damagedProfile() throws IOException {
    var file = Files.writeString(directory.resolve("profile.json"), "{\"tokens\": 3}");
    expect(
        1, "profile.json", CommandLineRun.of("chat", "-p", "Hi", "--kv-profile", file.toString()));
  }

  @Test
  void missingAndDamagedHeadWeights() throws IOException {
    var none = directory.resolve("none.json").toString();
    var command = List.of("chat", "-p", "Hi", "--kv-policy", "foresight", "--kv-head-weights");
    expect(1, "none.json", CommandLineRun.of(with(command, none)));
    var file = Files.writeString(directory.resolve("weights.json"), "{\"trace\": 3}").toString();
    expect(1, "weights.json", CommandLineRun.of(with(command, file)));
  }

  private static String[] with(List<String> command, String argument) {
    var all = new ArrayList<>(command);
    all.add(argument);
    return all.toArray(String[]::new);
  }

  @Test
  void nowhereToAppendResults() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(2400)).toString();
    var file = directory.resolve("none").resolve("lines").toString();
    expect(1, "cannot be written", CommandLineRun.onModel("", "eval", "-f", text, "--lines", file));
  }

  @Test
  void textsThatATaskCannotUse() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(2400)).toString();
    expect(1, "Line 1", CommandLineRun.onModel("", "eval", "-f", text, "--task", "generate"));
    expect(
        1, "room", CommandLineRun.onModel("", "eval", "-f", text, "--task", "codes", "-p", "100"));
  }

  @Test
  void nowhereToSaveAProfile() {
    var file = directory.resolve("none").resolve("p.json").toString();
    expect(1, "no directory", CommandLineRun.of("chat", "-p", "Hi", "--kv-save-profile", file));
  }

  @Test
  void tooLittleTextForAProfile() throws IOException {
    var file = Files.writeString(directory.resolve("short.txt"), "A short text.");
    expect(1, "256", CommandLineRun.onModel("", "profile", "-f", file.toString()));
  }

  @Test
  void tooLongForTheContext() {
    expect(
        1,
        "context",
        CommandLineRun.onModel("", "chat", "-c", "256", "-p", "again and ".repeat(400)));
  }

  @Test
  void tooLongForTheLimit() {
    expect(
        1,
        "limit of 1.00 MiB",
        CommandLineRun.onModel("", "chat", "--kv-limit", "1M", "-p", "again and ".repeat(100)));
  }

  @Test
  void theStackTraceIsShownOnDemand() {
    var run =
        CommandLineRun.of(
            "chat", "-v", "-p", "Hi", "-m", directory.resolve("none.gguf").toString());
    assertEquals(1, run.exitCode());
    assertTrue(run.err().contains("\tat dev.kvasir"), run::err);
  }

  @Test
  void anArgumentThatBeginsWithAnAtSignIsItself() throws IOException {
    var options = Files.writeString(directory.resolve("options"), "--help");
    expect(2, "@" + options, CommandLineRun.of("devices", "@" + options));
  }

  @Test
  void anArgumentThatTheLocaleCannotHoldIsRefused() throws IOException, InterruptedException {
    var output = directory.resolve("output");
    var builder =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                String.join(
                    File.pathSeparator,
                    System.getProperty("jdk.module.path", ""),
                    System.getProperty("java.class.path")),
                Kvasir.class.getName(),
                "chat",
                "-p",
                "Größe")
            .redirectErrorStream(true)
            .redirectOutput(output.toFile());
    builder.environment().put("LC_ALL", "C");
    int exitCode = builder.start().waitFor();
    expect(2, "LC_ALL=C.UTF-8", new CommandLineRun(exitCode, "", Files.readString(output)));
  }
}
