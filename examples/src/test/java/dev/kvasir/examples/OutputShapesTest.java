package dev.kvasir.examples;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.kvasir.cache.LossProfile;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What scripts may rely on, on small runs of the default model. */
class OutputShapesTest {
  private static final ObjectMapper JSON = new ObjectMapper();

  @TempDir private Path directory;

  private static List<String> fields(JsonNode node) {
    var names = new ArrayList<String>();
    node.fieldNames().forEachRemaining(names::add);
    return names;
  }

  @Test
  void profileJson() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(1000));
    var file = directory.resolve("profile.json");
    var run =
        CommandLineRun.onModel("", "profile", "-f", text.toString(), "--json", file.toString());
    assertEquals(0, run.exitCode(), run::err);
    assertEquals("", run.err());
    // a header, a row per head, the map, the targets, the summary
    assertTrue(run.out().lines().count() > 90 + 6, run::out);

    var profile = JSON.readTree(file.toFile());
    assertTrue(profile.get("tokens").asInt() >= 256);
    assertEquals(0.95, profile.get("target").get("recovery").asDouble());
    assertEquals(90, profile.get("heads").size());
    for (var head : profile.get("heads")) {
      assertTrue(
          fields(head).containsAll(List.of("layer", "kvHead", "policy", "kept", "recovery")));
      assertEquals(
          List.of("special", "punctuation", "frequent", "local", "full"),
          fields(head.get("recovery")));
      assertTrue(head.get("kept").asInt() <= profile.get("tokens").asInt());
    }

    var piped = CommandLineRun.onModel(Texts.harbour(1000), "profile", "-f", "-", "--json", "-");
    assertEquals(profile, JSON.readTree(piped.out()));
  }

  @Test
  void profileOfLosses() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(3000)).toString();
    var file = directory.resolve("losses.json");
    var run =
        CommandLineRun.onModel(
            "",
            "profile",
            "-f",
            text,
            "--kv-policy",
            "foresight",
            "--kv-budget",
            "25%",
            "--json",
            file.toString());
    assertEquals(0, run.exitCode(), run::err);
    // a header, a row per head, the map, the budgets, the summary
    assertTrue(run.out().lines().count() > 90 + 6, run::out);
    assertTrue(run.out().contains("budget 25.0% of"), run::out);
    var profile = LossProfile.load(file);
    assertEquals(0.25, profile.budget());
    assertEquals(90, profile.heads().size());
    assertTrue(profile.lossAt(0.5) < profile.lossAt(0.25), run::out);
  }

  @Test
  void benchJson() throws IOException {
    var run =
        CommandLineRun.onModel(
            "",
            "bench",
            "-p",
            "32",
            "-n",
            "2",
            "-d",
            "0,260",
            "-r",
            "2",
            "-o",
            "json",
            "--kv-budget",
            "50%",
            "--kv-recovery",
            "1");
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out());
    var tests = new ArrayList<String>();
    for (var row : rows) {
      assertEquals(
          List.of(
              "engine",
              "test",
              "policy",
              "device",
              "sequences",
              "keptFraction",
              "kvBytes",
              "rssBytes",
              "deviceBytes",
              "tokensPerSecond"),
          fields(row));
      tests.add(
          row.get("test").asText()
              + " "
              + row.get("engine").asText()
              + " "
              + row.get("policy").asText());
      assertEquals(2, row.get("tokensPerSecond").size());
      row.get("tokensPerSecond").forEach(rate -> assertTrue(rate.asDouble() > 0));
    }
    var expected = new ArrayList<String>();
    for (var test : List.of("pp32", "tg2", "tg2@d260")) {
      for (var engine :
          List.of("llama.cpp full", "kvasir full", "kvasir fastgen 50%", "kvasir fastgen T=1.0")) {
        expected.add(test + " " + engine);
      }
    }
    assertEquals(expected, tests);
    long full = rows.get(9).get("kvBytes").asLong();
    long half = rows.get(10).get("kvBytes").asLong();
    assertEquals(rows.get(8).get("kvBytes").asLong(), full);
    assertEquals(full, rows.get(11).get("kvBytes").asLong());
    assertTrue(half < 0.55 * full && half > 0.4 * full, run::out);
  }

  @Test
  void benchOfSequencesTogether() throws IOException {
    var run =
        CommandLineRun.onModel(
            "", "bench", "-p", "0", "-n", "2", "-d", "0,260", "-r", "1", "-np", "1,3", "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out());
    var tests = new ArrayList<String>();
    rows.forEach(row -> tests.add(row.get("test").asText()));
    assertEquals(
        List.of("tg2", "tg2 np3", "tg2@d260", "tg2@d260 np3"), tests.stream().distinct().toList());
    assertEquals(16, rows.size());
    for (int row = 8; row < 12; row++) {
      assertEquals(1, rows.get(row).get("sequences").asInt());
      assertEquals(3, rows.get(row + 4).get("sequences").asInt());
      double ofOne = rows.get(row).get("kvBytes").asDouble();
      assertEquals(3, rows.get(row + 4).get("kvBytes").asDouble() / ofOne, 0.05, run::out);
    }
  }

  @Test
  void benchOfPromptAndDecodeTogether() throws IOException {
    long start = System.nanoTime();
    var run =
        CommandLineRun.onModel(
            "",
            "bench",
            "-p",
            "0",
            "-n",
            "0",
            "-pg",
            "260,4",
            "-pg",
            "16,3",
            "-r",
            "2",
            "-np",
            "1,2",
            "--kv-budget",
            "50%",
            "-o",
            "json");
    double wallSeconds = (System.nanoTime() - start) / 1e9;
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out());
    var tests = new ArrayList<String>();
    double seconds = 0;
    for (var row : rows) {
      var test = row.get("test").asText();
      tests.add(test + " " + row.get("policy").asText());
      assertEquals(2, row.get("tokensPerSecond").size());
      for (var rate : row.get("tokensPerSecond")) {
        int tokens = test.startsWith("pp260") ? 264 : 19;
        seconds += row.get("sequences").asInt() * tokens / rate.asDouble();
      }
    }
    // rates of fewer tokens than prompt and decode together would add up to more than there was
    assertTrue(seconds < wallSeconds, seconds + " of " + wallSeconds);
    assertTrue(seconds > 0.1 * wallSeconds, seconds + " of " + wallSeconds);
    var expected = new ArrayList<String>();
    for (var test : List.of("pp260+tg4", "pp260+tg4 np2", "pp16+tg3", "pp16+tg3 np2")) {
      for (var policy : List.of("full", "full", "fastgen 50%")) {
        expected.add(test + " " + policy);
      }
    }
    assertEquals(expected, tests);
    for (int test = 0; test < 4; test++) {
      var stock = rows.get(3 * test);
      var full = rows.get(3 * test + 1);
      int sequences = test % 2 + 1;
      assertEquals(sequences, full.get("sequences").asInt());
      // what the cache holds at the end: 90 KV heads, 64 elements of keys and values in two bytes
      long tokens = test < 2 ? 264 : 19;
      assertEquals(tokens * sequences * 90 * 256, full.get("kvBytes").asLong(), run::out);
      assertEquals(full.get("kvBytes"), stock.get("kvBytes"));
    }
    for (int half : new int[] {2, 5}) {
      double kept = rows.get(half).get("keptFraction").asDouble();
      assertTrue(kept > 0.4 && kept < 0.55, run::out);
    }
    // too short for a profile
    assertEquals(1, rows.get(8).get("keptFraction").asDouble());
    assertEquals(1, rows.get(11).get("keptFraction").asDouble());
  }

  @Test
  void benchTable() {
    var run = CommandLineRun.onModel("", "bench", "-p", "16", "-n", "0", "-r", "1");
    assertEquals(0, run.exitCode(), run::err);
    var rows =
        run.out()
            .lines()
            .filter(line -> line.startsWith("| kvasir") || line.startsWith("| llama.cpp"))
            .toList();
    assertEquals(4, rows.size(), run::out);
  }

  @Test
  void benchOfPoliciesBesideEachOther() throws IOException {
    var run =
        CommandLineRun.onModel(
            "",
            "bench",
            "-p",
            "16",
            "-n",
            "0",
            "-r",
            "1",
            "--kv-policy",
            "fastgen,foresight",
            "--kv-statistic",
            "u,c/4",
            "--kv-budget",
            "12.5%",
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var policies = new ArrayList<String>();
    JSON.readTree(run.out()).forEach(row -> policies.add(row.get("policy").asText()));
    assertEquals(
        List.of("full", "full", "fastgen 12.5%", "foresight u 12.5%", "foresight c/4 12.5%"),
        policies);
  }

  @Test
  void evalJson() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(2400));
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            text.toString(),
            "-p",
            "260",
            "-n",
            "4",
            "--texts",
            "2",
            "--kv-budget",
            "50%",
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out()).get("rows");
    var methods = new ArrayList<String>();
    for (var row : rows) {
      methods.add(row.get("method").asText());
      assertTrue(row.get("meanKl").get("mean").asDouble() >= 0);
      assertEquals(2, row.get("klPerText").size());
    }
    assertEquals(List.of("full", "paper", "lattice", "h2o", "streaming"), methods);
    assertEquals(1, rows.get(0).get("keptAtEnd").asDouble());
    assertTrue(rows.get(2).get("keptAfterPrompt").asDouble() <= 0.5, run::out);
    // dropping half of the cache costs more than the noise between two implementations
    assertTrue(
        rows.get(4).get("meanKl").get("mean").asDouble()
            > rows.get(0).get("meanKl").get("mean").asDouble(),
        run::out);
  }

  @Test
  void evalHoldsTheBudgetInBytesWhateverTheTypes() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(2400)).toString();
    var lines = directory.resolve("lines.jsonl");
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            text,
            "-p",
            "300",
            "-n",
            "8",
            "--texts",
            "2",
            "--turns",
            "2",
            "--methods",
            "full,lattice",
            "--kv-types",
            "f16,q8_0/q4_0",
            "--kv-budget",
            "35%",
            "--lines",
            lines.toString(),
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var report = JSON.readTree(run.out());
    assertEquals("text", report.get("task").asText());
    assertEquals(2, report.get("turns").asInt());
    var rows = report.get("rows");
    var names = new ArrayList<String>();
    rows.forEach(row -> names.add(row.get("method").asText() + " " + row.get("types").asText()));
    assertEquals(List.of("full f16", "lattice f16", "full q8_0/q4_0", "lattice q8_0/q4_0"), names);
    // 16 bytes of books for a slot of 256, and for one of 68 + 36
    assertEquals(272 / 256.0, rows.get(0).get("bytes").asDouble(), 1e-9);
    assertEquals(120 / 256.0, rows.get(2).get("bytes").asDouble(), 1e-9);
    for (int row : new int[] {1, 3}) {
      assertEquals(0.35, rows.get(row).get("bytes").asDouble(), 0.02, run::out);
    }

    var measured = Files.readAllLines(lines);
    assertEquals(8, measured.size());
    for (int i = 0; i < 8; i++) {
      var line = JSON.readTree(measured.get(i));
      var row = rows.get(i % 4);
      assertEquals(i / 4, line.get("text").asInt());
      assertEquals(row.get("method"), line.get("method"));
      assertEquals(row.get("types"), line.get("types"));
      assertEquals(row.get("klPerText").get(i / 4), line.get("meanKl"));
      assertEquals(8, line.get("kl").size());
    }
  }

  @Test
  void evalOfForesightByStatistic() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(3000)).toString();
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            text,
            "-p",
            "520",
            "-n",
            "64",
            "--texts",
            "1",
            "--methods",
            "foresight",
            "--kv-statistic",
            "u,c/4",
            "--kv-types",
            "q8_0",
            "--kv-budget",
            "30%",
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out()).get("rows");
    var methods = new ArrayList<String>();
    for (var row : rows) {
      methods.add(row.get("method").asText());
      // with its books, and half a block of new tokens
      assertEquals(0.3, row.get("bytes").asDouble(), 0.005, run::out);
      assertTrue(row.get("keptAfterPrompt").asDouble() < 0.5, run::out);
    }
    assertEquals(List.of("foresight u", "foresight c/4"), methods);
  }

  @Test
  void evalFindsWithEverythingKeptWhatTheFullCacheFinds() throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(4000)).toString();
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            text,
            "--task",
            "codes",
            "-p",
            "320",
            "--texts",
            "3",
            "--methods",
            "full,streaming",
            "--kv-budget",
            "20%",
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var rows = JSON.readTree(run.out()).get("rows");
    int answered = rows.get(0).get("answered").asInt();
    assertTrue(answered > 0 && answered <= 12, run::out);
    assertTrue(rows.get(0).get("found").asInt() >= answered - 1, run::out); // a near tie
    assertEquals(answered, rows.get(1).get("answered").asInt());
    // the lines stand before the window, but for a lucky guess
    assertTrue(rows.get(1).get("found").asInt() <= 1, run::out);
  }

  @Test
  void evalOfWhatTheModelSaysByItself() throws IOException {
    var problems = new StringBuilder();
    for (int i = 1; i <= 12; i++) {
      problems
          .append(
              "{\"question\": \"A ship has %d barrels and takes %d more. How many has it then?\","
                  .formatted(i, 2 * i))
          .append(
              " \"answer\": \"It has %d + %d = <<%d+%d=%d>>%d barrels.\\n#### %d\"}\n"
                  .formatted(i, 2 * i, i, 2 * i, 3 * i, 3 * i, 3 * i));
    }
    var file = Files.writeString(directory.resolve("problems.jsonl"), problems).toString();
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            file,
            "--task",
            "generate",
            "-p",
            "280",
            "-n",
            "24",
            "--texts",
            "2",
            "--methods",
            "full,lattice",
            "--kv-budget",
            "50%",
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    var report = JSON.readTree(run.out());
    assertEquals(24, report.get("suffixTokens").asInt());
    for (var row : report.get("rows")) {
      assertEquals(2, row.get("answered").asInt(), run::out); // the examples show how
      assertTrue(row.get("sameAnswer").asInt() <= 2, run::out);
      double distinct = row.get("distinct").asDouble();
      assertTrue(distinct > 0 && distinct <= 1, run::out);
      // along its own text: what two ways to compute the same differ by, or little more
      assertTrue(row.get("meanKl").get("mean").asDouble() < 0.5, run::out);
    }
    assertEquals(2, report.get("rows").get(0).get("sameAnswer").asInt(), run::out);
  }

  @Test
  void evalShowsWhatAKvTypeCosts() throws IOException {
    double f16 = meanKlOfEverythingKept("f16"), q4 = meanKlOfEverythingKept("q4_0");
    // 4 bits in place of 16: ten times the noise between two implementations and more
    assertTrue(q4 > 3 * f16, "q4_0 " + q4 + ", f16 " + f16);
  }

  private double meanKlOfEverythingKept(String type) throws IOException {
    var text = Files.writeString(directory.resolve("text.txt"), Texts.harbour(2400));
    var run =
        CommandLineRun.onModel(
            "",
            "eval",
            "-f",
            text.toString(),
            "-p",
            "260",
            "-n",
            "4",
            "--texts",
            "2",
            "--methods",
            "full",
            "-ctk",
            type,
            "-ctv",
            type,
            "-o",
            "json");
    assertEquals(0, run.exitCode(), run::err);
    return JSON.readTree(run.out()).get("rows").get(0).get("meanKl").get("mean").asDouble();
  }

  @Test
  void devices() {
    var run = CommandLineRun.of("devices");
    assertEquals(0, run.exitCode(), run::err);
    assertTrue(run.out().lines().anyMatch(line -> line.startsWith("CPU")), run::out);
  }

  @Test
  void help() {
    for (var command : List.of("chat", "profile", "bench", "eval", "devices")) {
      var run = CommandLineRun.of(command, "--help");
      assertEquals(0, run.exitCode());
      assertTrue(run.out().startsWith("Usage: kvasir " + command), run::out);
    }
  }
}
