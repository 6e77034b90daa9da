package dev.kvasir;

import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.kvasir.cache.HeadProfile;
import dev.kvasir.cache.Profile;

/**
 * How far the recoveries of two profiles of one model are apart.
 *
 * @param mean absolute, over the candidates of all heads
 * @param most of one candidate of one head
 * @param sameChoice heads that choose the same candidate
 */
record ProfileDifference(double mean, double most, int sameChoice) {
  static ProfileDifference between(Profile expected, Profile actual) {
    assertEquals(expected.heads().size(), actual.heads().size());
    double sum = 0;
    double most = 0;
    int figures = 0;
    int sameChoice = 0;
    for (int head = 0; head < expected.heads().size(); head++) {
      HeadProfile one = expected.heads().get(head);
      HeadProfile other = actual.heads().get(head);
      for (int candidate = 0; candidate < one.candidates(); candidate++) {
        double difference = Math.abs(one.recovery(candidate) - other.recovery(candidate));
        sum += difference;
        most = Math.max(most, difference);
        figures++;
      }
      sameChoice += one.chosen() == other.chosen() ? 1 : 0;
    }
    return new ProfileDifference(sum / figures, most, sameChoice);
  }

  @Override
  public String toString() {
    return "mean %.2e, most %.2e, the same choice in %d heads".formatted(mean, most, sameChoice);
  }
}
