package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.cache.CachePolicy;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Chat templates that would end the process, fill the memory or never come to an end: a session
 * opens and completes text all the same, and a chat is refused by an exception.
 */
class HostileTemplateTest {
  private static final long MOST_MEBIBYTES = 1500;

  @TempDir Path directory;

  static Map<String, String> templates() {
    Map<String, String> all = new LinkedHashMap<>();
    all.put("a macro that calls itself", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}");
    all.put(
        "macros that call each other",
        "{% macro f(x) %}{{ g(x ~ 'a') }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}");
    all.put("brackets", "{{ " + "(".repeat(20_000) + "1" + ")".repeat(20_000) + " }}");
    all.put("brackets that are not closed", "{{ " + "[".repeat(100_000));
    all.put("negations", "{{ " + "not ".repeat(60_000) + "1 }}");
    all.put("signs", "{{ " + "- ".repeat(100_000) + "1 }}");
    all.put("a long sum", "{{ 1" + "+1".repeat(120_000) + " }}");
    all.put("calls of calls", "{{ x" + "()".repeat(100_000) + " }}");
    all.put("loops in loops", "{% for a in [1] %}".repeat(6000) + "{% endfor %}".repeat(6000));
    all.put("a long range", "{% for i in range(300000000) %}{{ i }}{% endfor %}");
    all.put(
        "a range without end", "{{ range(0, 9223372036854775807, 4611686018427387904) | length }}");
    all.put(
        "a doubled string",
        "{% set s = 'abcdefgh' %}" + "{% set s = s + s %}".repeat(40) + "{{ s }}");
    all.put("a repeated string", "{{ 'abcdefghijklmnopqrstuvwxyz' * 1000000000 }}");
    all.put("a replaced string", "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}");
    all.put("a joined string", "{% set s = 'a' * 100000 %}{{ range(100000) | join(s) }}");
    all.put("an indented string", "{{ 'a\nb' | indent(1000000000) }}");
    all.put(
        "nested loops",
        "{% for a in range(3000) %}{% for b in range(3000) %}{% for c in range(3000) %}{% endfor %}{% endfor %}{% endfor %}");
    all.put(
        "a doubled list as JSON",
        "{% set x = [] %}" + "{% set x = [x, x] %}".repeat(60) + "{{ x | tojson }}");
    all.put(
        "a doubled list",
        "{% set x = [] %}" + "{% set x = [x, x] %}".repeat(60) + "{{ x | string }}");
    all.put(
        "a doubled tuple as a key",
        "{% set x = (1, 2) %}" + "{% set x = (x, x) %}".repeat(60) + "{{ {x: 1} }}");
    all.put("a list in itself", "{% set a = [] %}{% set _ = a.append(a) %}{{ a | string }}");
    all.put(
        "a list in itself by another name",
        "{% set a = [] %}{% set _ = a['app' ~ 'end'](a) %}{{ a | tojson }}");
    all.put(
        "an object in itself", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns | tojson }}");
    all.put(
        "lists in lists",
        "{% set ns = namespace(x=[]) %}{% for i in range(1000000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | string }}");
    all.put("a division by zero", "{{ 1 is divisibleby(0) }}");
    all.put("a division by zero in a filter", "{{ [1] | select('divis' ~ 'ibleby', 0) }}");
    all.put(
        "values that have no order",
        "{% set b = [] %}{% for i in range(200) %}{% set _ = b.append(i if i % 3 == 0 else (none if i % 3 == 1 else i ~ '')) %}{% endfor %}{{ b | sort | length }}");
    all.put("a long text", "a".repeat(300_000));
    all.put("nothing that can be parsed", "{% if %}{{{% }}");
    return all;
  }

  @Test
  void aSessionOpensAndCompletesAndAChatIsRefused() throws IOException, InterruptedException {
    ChildJvm child = ChildJvm.run(directory, Map.of(), 600, Child.class);
    assertEquals("", child.output());
    assertEquals(0, child.exitValue());
  }

  /** Prints what is not as it should be. */
  static final class Child {
    public static void main(String[] arguments) throws IOException {
      Path file = Path.of("model.gguf").toAbsolutePath();
      int opened = 0;
      for (Map.Entry<String, String> template : templates().entrySet()) {
        SyntheticModels.llama(
            file, 1, SyntheticVocabulary.sentencePiece().chatTemplate(template.getValue()));
        SessionOptions options = SessionOptions.defaults().withContextSize(256).withMaxTokens(2);
        if (opened++ < 3) { // a policy that asks for the template's markers
          options = options.withCachePolicy(CachePolicy.fastgen());
        }
        try (Model model = Model.load(file);
            Session session = model.newSession(options)) {
          session.complete("w1 w2").text();
          try {
            session.chat("w3").text();
            System.out.println(template.getKey() + " was rendered");
          } catch (UnsupportedModelException e) {
            if (!e.getMessage().contains("chat template")) {
              System.out.println(template.getKey() + ": " + e.getMessage());
            }
          }
          session.complete("w4").text();
        }
      }
      if (Files.exists(Path.of("/proc/self/status"))) {
        long peak =
            Files.readAllLines(Path.of("/proc/self/status")).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")) / 1024)
                .findFirst()
                .orElse(0);
        if (peak > MOST_MEBIBYTES) {
          System.out.println(peak + " MiB of memory");
        }
      }
    }
  }
}
