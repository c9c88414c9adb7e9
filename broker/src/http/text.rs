//! Prometheus' text format, version 0.0.4: what every scraper reads. Written here because it is sixty lines, and the crates that write it
//! keep their numbers behind locks of their own.

use std::fmt::Write as _;

use crate::metrics::{Family, Value};

/// The format's name.
pub(super) const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families as text, each sample with `common` labels before its own. A family without samples is left out.
pub(super) fn write(families: &[Family], common: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(64 << 10);
    for Family { metric, samples } in families.iter().filter(|family| !family.samples.is_empty()) {
        let name = metric.name;
        let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a text cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", metric.kind.name());
        for sample in samples {
            let mut labels: Vec<(&str, &str)> = common.to_vec();
            labels.extend(metric.labels.iter().copied().zip(sample.labels.iter().map(String::as_str)));
            match &sample.value {
                Value::Number(number) => line(&mut out, name, "", &labels, *number),
                Value::Spread(spread) => {
                    for (bound, count) in &spread.buckets {
                        line(&mut out, name, "_bucket", &with(&labels, &bound.to_string()), *count as f64);
                    }
                    line(&mut out, name, "_bucket", &with(&labels, "+Inf"), spread.count as f64);
                    line(&mut out, name, "_sum", &labels, spread.sum);
                    line(&mut out, name, "_count", &labels, spread.count as f64);
                }
            }
        }
    }
    out
}

fn with<'a>(labels: &[(&'a str, &'a str)], bound: &'a str) -> Vec<(&'a str, &'a str)> {
    labels.iter().copied().chain([("le", bound)]).collect()
}

fn line(out: &mut String, name: &str, part: &str, labels: &[(&str, &str)], value: f64) {
    out.push_str(name);
    out.push_str(part);
    for (at, (label, text)) in labels.iter().enumerate() {
        out.push(if at == 0 { '{' } else { ',' });
        out.push_str(label);
        out.push_str("=\"");
        for char in text.chars() {
            match char {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if !labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{CALLS, Histogram, MESSAGE_SIZE, TOPICS};

    #[test]
    fn numbers_labels_and_histograms_are_written_as_scrapers_read_them() {
        let histogram = Histogram::of(&[10, 20]);
        histogram.record(15);
        histogram.record(99);
        let odd = vec!["a\"b\\c\nd".to_owned(), "ok".to_owned()];
        let families = [TOPICS.is(3.0), CALLS.each([(odd, 0.5)]), CALLS.each([]), MESSAGE_SIZE.spreads(&histogram)];
        let expected = "\
# HELP rocketmq_topic_number Topics.
# TYPE rocketmq_topic_number gauge
rocketmq_topic_number{cluster=\"c\"} 3
# HELP quorate_broker_calls_total Calls that this node answered, by what came of them.
# TYPE quorate_broker_calls_total counter
quorate_broker_calls_total{cluster=\"c\",method=\"a\\\"b\\\\c\\nd\",outcome=\"ok\"} 0.5
# HELP rocketmq_message_size Bytes of the body of one message that was sent.
# TYPE rocketmq_message_size histogram
rocketmq_message_size_bucket{cluster=\"c\",le=\"10\"} 0
rocketmq_message_size_bucket{cluster=\"c\",le=\"20\"} 1
rocketmq_message_size_bucket{cluster=\"c\",le=\"+Inf\"} 2
rocketmq_message_size_sum{cluster=\"c\"} 114
rocketmq_message_size_count{cluster=\"c\"} 2
";
        assert_eq!(write(&families, &[("cluster", "c")]), expected);
    }
}
