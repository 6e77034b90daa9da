package dev.kvasir.examples.profile;

import dev.kvasir.cache.CacheReport;
import dev.kvasir.cache.HeadUse;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * A picture of what every KV head keeps: layers from left to right, the KV heads of a layer below
 * each other. A letter says by which kinds of tokens a head keeps, a second map shows how much in
 * tenths; on a terminal the letters are coloured by that too.
 */
public final class HeadMap {
  private static final String NO_HEAD = " ";
  // from nothing kept to everything kept: text and background of xterm's 256 colours
  private static final int[][] COLOURS = {
    {15, 54}, {15, 60}, {15, 66}, {16, 72}, {16, 78}, {16, 149}, {16, 220}
  };

  private final CacheReport report;
  private final int width;
  private final boolean colour;

  /**
   * A map.
   *
   * @param width columns that a line may have
   * @param colour whether escape sequences may be used
   */
  public HeadMap(CacheReport report, int width, boolean colour) {
    this.report = report;
    this.width = width;
    this.colour = colour;
  }

  /** The map, with a legend of the letters that occur. */
  public String render() {
    var layers = new TreeMap<Integer, Map<Integer, HeadUse>>();
    int heads = 0;
    for (var head : report.heads()) {
      layers.computeIfAbsent(head.layer(), layer -> new TreeMap<>()).put(head.kvHead(), head);
      heads = Math.max(heads, head.kvHead() + 1);
    }
    var label = "KV head %" + String.valueOf(Math.max(0, heads - 1)).length() + "d  ";
    int room = Math.max(10, width - label.formatted(0).length());
    var columns = List.copyOf(layers.keySet());
    var text = new StringBuilder();
    for (int from = 0; from < columns.size(); from += room) {
      var part = columns.subList(from, Math.min(columns.size(), from + room));
      var indent = " ".repeat(label.formatted(0).length());
      text.append(layerLabel(indent)).append(ruler(part)).append('\n');
      for (int h = 0; h < heads; h++) {
        text.append(label.formatted(h));
        for (int layer : part) {
          var head = layers.get(layer).get(h);
          text.append(head == null ? NO_HEAD : coloured(head, letter(head.policy())));
        }
        text.append('\n');
      }
      text.append(indent).append("kept, in tenths\n");
      for (int h = 0; h < heads; h++) {
        text.append(label.formatted(h));
        for (int layer : part) {
          var head = layers.get(layer).get(h);
          text.append(head == null ? NO_HEAD : coloured(head, tenths(head)));
        }
        text.append('\n');
      }
    }
    return text + legend();
  }

  private static String layerLabel(String indent) {
    return "layer" + indent.substring("layer".length());
  }

  /** A mark at every tenth layer. */
  private static String ruler(List<Integer> layers) {
    var ruler = new StringBuilder(" ".repeat(layers.size()));
    for (int c = 0; c < layers.size(); c++) {
      var mark = layers.get(c).toString();
      if ((layers.get(c) % 10 == 0 || c == 0)
          && c + mark.length() <= layers.size()
          && ruler.substring(c, c + mark.length()).isBlank()
          && (c == 0 || ruler.charAt(c - 1) == ' ')) {
        ruler.replace(c, c + mark.length(), mark);
      }
    }
    return ruler.toString().stripTrailing();
  }

  private static char tenths(HeadUse head) {
    int tenths = (int) Math.floor(10 * head.keptFraction() + 1e-9);
    return tenths >= 10 ? '#' : (char) ('0' + tenths);
  }

  /**
   * The letter of a policy by its name: the paper's candidates are named after the kind that each
   * adds last, the lattice's after their parts.
   */
  static char letter(String policy) {
    return switch (policy) {
      case "full" -> '#';
      case "undecided" -> '?';
      case "special", "sinks" -> 'S';
      case "punctuation" -> 'P';
      case "frequent" -> 'F';
      case "local" -> 'L';
      default -> {
        boolean frequent = policy.contains("frequent");
        boolean local = policy.contains("local");
        yield policy.startsWith("foresight")
            ? 'o'
            : frequent && local ? 'b' : frequent ? 'f' : local ? 'l' : '+';
      }
    };
  }

  private String legend() {
    var meaning = new LinkedHashMap<Character, String>();
    meaning.put('S', "special tokens");
    meaning.put('P', "special and punctuation");
    meaning.put('F', "... and frequent");
    meaning.put('L', "... and local");
    meaning.put('l', "local");
    meaning.put('f', "frequent");
    meaning.put('b', "frequent and local");
    meaning.put('o', "what later queries would take");
    meaning.put('+', "other");
    meaning.put('#', "everything");
    meaning.put('?', "undecided, everything so far");
    var used = new TreeSet<Character>();
    report.heads().forEach(head -> used.add(letter(head.policy())));
    var parts = new ArrayList<String>();
    meaning.forEach(
        (letter, text) -> {
          if (used.contains(letter)) {
            parts.add(letter + " " + text);
          }
        });
    return String.join("   ", parts) + "\n";
  }

  private String coloured(HeadUse head, char mark) {
    if (!colour) {
      return String.valueOf(mark);
    }
    int[] pair =
        COLOURS[
            Math.clamp(
                Math.round(head.keptFraction() * (COLOURS.length - 1)), 0, COLOURS.length - 1)];
    return "\033[38;5;%d;48;5;%dm%c\033[0m".formatted(pair[0], pair[1], mark);
  }
}
