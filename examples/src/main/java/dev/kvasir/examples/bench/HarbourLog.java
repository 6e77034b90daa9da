package dev.kvasir.examples.bench;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/**
 * Text of any length to fill a cache with when no file is given: the journal of a harbour office.
 * Ships arrive, trade, owe money and leave, and later entries come back to what earlier ones said,
 * so that attention has something to find far back. It is the same text at every call.
 */
final class HarbourLog {
  private static final List<String> SHIPS =
      List.of(
          "Margarethe",
          "Blue Heron",
          "Octavia",
          "Sankt Olaf",
          "Windrose",
          "Perseverance",
          "Little Anna",
          "Corvina",
          "Halcyon",
          "Two Brothers",
          "Esperanza",
          "Northern Light",
          "Ludmila",
          "Swift",
          "Old Thomas",
          "Mirabelle");
  private static final List<String> MASTERS =
      List.of(
          "Ilse Brandt",
          "Captain Okafor",
          "the elder Lindqvist",
          "Marta Reyes",
          "Jonas Petrov",
          "Captain Haddad",
          "young Tamsin Vale",
          "Per Nygaard",
          "Widow Castellan",
          "Henrik Moss",
          "Captain Duarte",
          "Agnes Thorne",
          "Yusuf Demir",
          "Clara Whitlock",
          "Pieter van Rijn",
          "Captain Sorley");
  private static final List<String> GOODS =
      List.of(
          "salted herring",
          "raw wool",
          "window glass",
          "copper sheet",
          "lamp oil",
          "oak planks",
          "barley",
          "printing paper",
          "dried figs",
          "rope",
          "church bells",
          "roof slate",
          "sea coal",
          "cheese",
          "indigo",
          "clock parts");
  private static final List<String> PORTS =
      List.of(
          "Visby",
          "Lorient",
          "the Faroes",
          "Smyrna",
          "Hull",
          "Cork",
          "Danzig",
          "Porto",
          "Tromsø",
          "Livorno",
          "Riga",
          "the Azores");
  private static final List<String> WEATHER =
      List.of(
          "a hard frost with no wind at all",
          "rain from the south-west that did not stop before dusk",
          "fog so thick that the bell was rung every quarter hour",
          "a clear sky and a steady easterly",
          "squalls, and hail twice before noon",
          "a warm haze, the water flat as a plate",
          "a gale that took two slates off the customs house",
          "thaw, and the lower quay under water");
  private static final List<String> PLACES =
      List.of(
          "the north mole",
          "the long quay",
          "berth four",
          "the basin behind the ropewalk",
          "the roads outside",
          "the coal pier",
          "berth nine",
          "the old stone steps");
  private static final List<String> TROUBLES =
      List.of(
          "a cracked foremast",
          "water in the hold",
          "two hands down with fever",
          "a quarrel between the mate and the cook",
          "an anchor lost on the bar",
          "rats in the bread room",
          "papers that named the wrong port",
          "a pump that would not draw");
  private static final List<String> OPINIONS =
      List.of(
          "The pilot says that the bar has moved again and wants the buoys set anew before the autumn.",
          "Nobody on the quay believes the price will hold, and yet everybody buys.",
          "The schoolmaster came with eleven children to see the crane; it did not break, which surprised them.",
          "I have asked the council a third time for a new lantern and expect a third silence.",
          "The cooper's boy found a brass button of the old garrison and was offered four pence for it.",
          "If the river freezes before the barges are in, the town will eat barley until March.",
          "It is easier to count a cargo than to learn who owns it.",
          "The cat of the office has moved to the customs house, where the mice are said to be better fed.");

  private record Visit(
      int number,
      int day,
      String ship,
      String master,
      String goods,
      String port,
      int quantity,
      int fee,
      String place,
      String trouble) {}

  private final Random random = new Random(1875);
  private final List<Visit> past = new ArrayList<>();
  private final StringBuilder text =
      new StringBuilder("Journal of the harbour office, kept by the second clerk.\n");
  private int day;

  private HarbourLog() {}

  /** At least so many characters of the journal, whole entries. */
  static String ofLength(int characters) {
    var log = new HarbourLog();
    while (log.text.length() < characters) {
      log.entry();
    }
    return log.text.toString();
  }

  private void entry() {
    day += 1 + random.nextInt(3);
    say("\nDay %d. %s".formatted(day, sentence(pick(WEATHER))));
    arrival();
    for (int n = random.nextInt(3); n > 0; n--) {
      reminiscence();
    }
    if (random.nextInt(3) == 0) {
      say(pick(OPINIONS));
    }
    if (random.nextInt(4) == 0) {
      reckoning();
    }
    text.append('\n');
  }

  private void arrival() {
    var visit =
        new Visit(
            past.size() + 1,
            day,
            pick(SHIPS),
            pick(MASTERS),
            pick(GOODS),
            pick(PORTS),
            20 + random.nextInt(380),
            3 + random.nextInt(60),
            pick(PLACES),
            pick(TROUBLES));
    past.add(visit);
    switch (random.nextInt(4)) {
      case 0 ->
          say(
              "The %s came in from %s and lies at %s, %s commanding; she carries %d loads of %s and reports %s. Entered as number %d, fee %d crowns."
                  .formatted(
                      visit.ship,
                      visit.port,
                      visit.place,
                      visit.master,
                      visit.quantity,
                      visit.goods,
                      visit.trouble,
                      visit.number,
                      visit.fee));
      case 1 ->
          say(
              "Number %d in the book is the %s under %s. From %s, with %s; %d loads of it, all for the merchants of the upper town. The fee is %d crowns and was not paid at once, because of %s. Berth: %s."
                  .formatted(
                      visit.number,
                      visit.ship,
                      visit.master,
                      visit.port,
                      visit.goods,
                      visit.quantity,
                      visit.fee,
                      visit.trouble,
                      visit.place));
      case 2 ->
          say(
              "Before breakfast %s stood at the window and asked for %s. The ship is the %s, %d loads of %s, last port %s. I wrote her down as number %d and asked %d crowns; about %s not a word was said, but the carpenter told me."
                  .formatted(
                      visit.master,
                      visit.place,
                      visit.ship,
                      visit.quantity,
                      visit.goods,
                      visit.port,
                      visit.number,
                      visit.fee,
                      visit.trouble));
      default ->
          say(
              "Arrived: %s, number %d, %s. Cargo: %s, %d loads, out of %s. Fee: %d crowns. Lies at %s. Remark: %s."
                  .formatted(
                      visit.ship,
                      visit.number,
                      visit.master,
                      visit.goods,
                      visit.quantity,
                      visit.port,
                      visit.fee,
                      visit.place,
                      visit.trouble));
    }
  }

  private void reminiscence() {
    var visit = past.get(random.nextInt(past.size()));
    int since = day - visit.day;
    switch (random.nextInt(5)) {
      case 0 ->
          say(
              "%s, whom I wrote down on day %d with %d loads of %s, sent the boy to ask whether %s would buy more."
                  .formatted(
                      sentenceStart(visit.master),
                      visit.day,
                      visit.quantity,
                      visit.goods,
                      pick(MASTERS)));
      case 1 ->
          say(
              "Number %d is still the %s, whatever the council's copy says: %d crowns, %s, day %d."
                  .formatted(visit.number, visit.ship, visit.fee, visit.place, visit.day));
      case 2 ->
          say(
              "It is %d days now since the %s came from %s, and %s has not been mended."
                  .formatted(since, visit.ship, visit.port, visit.trouble));
      case 3 ->
          say(
              "Of the %s that the %s brought, %d loads are sold and %d lie in the shed behind %s."
                  .formatted(
                      visit.goods,
                      visit.ship,
                      visit.quantity / 3,
                      visit.quantity - visit.quantity / 3,
                      visit.place));
      default ->
          say(
              "They speak of sending the %s back to %s with %s, if %s finds a crew."
                  .formatted(visit.ship, visit.port, pick(GOODS), visit.master));
    }
  }

  private void reckoning() {
    int crowns = past.stream().mapToInt(Visit::fee).sum();
    var most = past.stream().max((a, b) -> Integer.compare(a.quantity, b.quantity)).orElseThrow();
    say(
        "Reckoning to this day: %d ships in the book, %d crowns due, the largest cargo %d loads of %s in the %s."
            .formatted(past.size(), crowns, most.quantity, most.goods, most.ship));
  }

  private void say(String sentences) {
    if (text.charAt(text.length() - 1) != '\n') {
      text.append(' ');
    }
    text.append(sentences);
  }

  private String sentence(String words) {
    return sentenceStart(words) + ".";
  }

  private static String sentenceStart(String words) {
    return Character.toUpperCase(words.charAt(0)) + words.substring(1);
  }

  private String pick(List<String> list) {
    return list.get(random.nextInt(list.size()));
  }
}
