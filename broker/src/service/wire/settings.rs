//! The settings a client gets in answer to its own.
//!
//! Clients wait for them at start and crash or hang over details, so the rules are narrow: the status is OK (Python ignores the reply
//! otherwise), a backoff policy is always there, exponential for producers and customized for consumers, except for push consumers
//! in Node, which only read exponential ones; metrics are off; what the client said about itself comes back as it was. A push consumer
//! hides what it could not work on for as long as the policy says, and one of an ordered group tries so often itself and then forwards the
//! message to the dead letters.

use std::time::Duration;

use quorate_proto::v2::{
    self, ClientType, CustomizedBackoff, ExponentialBackoff, Metric, RetryPolicy, Settings, TelemetryCommand,
    retry_policy::Strategy, settings::PubSub, telemetry_command,
};

use super::{
    convert::milliseconds,
    status::{Fault, ok},
    validate,
};
use crate::{
    config::Limits,
    machine::{Delays, Retry},
    session::Language,
};

/// What a push consumer asks for at once.
const RECEIVE_BATCH: i32 = 32;
/// What a push consumer's receive waits; whole seconds, for Python.
const LONG_POLL: Duration = Duration::from_secs(20);

/// What the broker knows of a consumer's group; the default is a group that it does not know yet.
pub(crate) struct GroupSettings {
    /// It wants order.
    pub fifo: bool,
    /// How often it gets a message.
    pub retry: Retry,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self { fifo: false, retry: Retry::usual(false) }
    }
}

/// The reply to `asked`, by a consumer of `group` or by a producer.
///
/// # Errors
/// A client type that is not built, or illegal client properties.
pub(crate) fn reply(
    asked: Settings,
    language: Language,
    group: &GroupSettings,
    limits: &Limits,
) -> Result<Settings, Fault> {
    validate::client_properties(asked.client_properties.iter())?;
    let client_type = client_type(&asked)?;
    let pub_sub = match asked.pub_sub {
        Some(PubSub::Publishing(publishing)) => PubSub::Publishing(v2::Publishing {
            topics: publishing.topics,
            max_body_size: i32::try_from(limits.message_bytes_max).unwrap_or(i32::MAX),
            validate_message_type: true,
        }),
        Some(PubSub::Subscription(subscription)) => PubSub::Subscription(v2::Subscription {
            group: subscription.group,
            subscriptions: subscription.subscriptions,
            fifo: Some(group.fifo),
            receive_batch_size: Some(RECEIVE_BATCH),
            long_polling_timeout: Some(seconds(LONG_POLL.as_secs())),
            lite_subscription_quota: None,
            max_lite_topic_size: None,
        }),
        None => {
            let text = "the settings say neither what is published nor what is subscribed to; fill one of them";
            return Err(Fault::new(v2::Code::BadRequest, text));
        }
    };
    let producer = matches!(pub_sub, PubSub::Publishing(_));
    let node_push = language == Language::Node && client_type == ClientType::PushConsumer;
    Ok(Settings {
        client_type: Some(client_type as i32),
        access_point: asked.access_point,
        backoff_policy: Some(match (producer, node_push) {
            (true, _) => exponential(3, 10, 1000, 2.0),
            (false, true) => as_exponential(&group.retry),
            (false, false) => customized(&group.retry),
        }),
        request_timeout: asked.request_timeout,
        pub_sub: Some(pub_sub),
        user_agent: asked.user_agent,
        metric: Some(Metric { on: false, endpoints: None }),
        client_properties: Default::default(),
    })
}

/// The command that carries settings or the reason why there are none.
pub(crate) fn command(reply: Result<Settings, Fault>) -> TelemetryCommand {
    match reply {
        Ok(settings) => {
            TelemetryCommand { status: Some(ok()), command: Some(telemetry_command::Command::Settings(settings)) }
        }
        Err(fault) => TelemetryCommand { status: Some(fault.into()), command: None },
    }
}

/// The type the client states, or what its settings are about if it does not (older clients).
fn client_type(asked: &Settings) -> Result<ClientType, Fault> {
    let stated = asked.client_type.unwrap_or(0);
    let unknown = || Fault::new(v2::Code::UnrecognizedClientType, format!("client type {stated} is unknown"));
    match ClientType::try_from(stated).map_err(|_| unknown())? {
        ClientType::LitePushConsumer | ClientType::LiteSimpleConsumer => Err(Fault::not_built("consuming lite topics")),
        ClientType::Unspecified => match asked.pub_sub {
            Some(PubSub::Publishing(_)) => Ok(ClientType::Producer),
            _ => Ok(ClientType::SimpleConsumer),
        },
        stated @ (ClientType::Producer
        | ClientType::PushConsumer
        | ClientType::SimpleConsumer
        | ClientType::PullConsumer) => Ok(stated),
    }
}

fn exponential(max_attempts: i32, initial_ms: u64, max_ms: u64, multiplier: f32) -> RetryPolicy {
    let (initial, max) = (Some(milliseconds(initial_ms)), Some(milliseconds(max_ms)));
    let backoff = ExponentialBackoff { initial, max, multiplier };
    RetryPolicy { max_attempts, strategy: Some(Strategy::ExponentialBackoff(backoff)) }
}

/// The delays of a group one by one: clients that read no exponential policy get the same delays.
fn customized(retry: &Retry) -> RetryPolicy {
    let next = retry.steps().into_iter().map(milliseconds).collect();
    let strategy = Some(Strategy::CustomizedBackoff(CustomizedBackoff { next }));
    RetryPolicy { max_attempts: retry.max_attempts().into(), strategy }
}

/// For clients that read no other: a ladder becomes what comes near it, from its first delay to its longest.
fn as_exponential(retry: &Retry) -> RetryPolicy {
    let attempts = retry.max_attempts().into();
    match retry.delays() {
        Delays::Exponential { initial_ms, max_ms, factor_percent } => {
            exponential(attempts, *initial_ms, *max_ms, f32::from(*factor_percent) / 100.0)
        }
        Delays::Ladder(_) => {
            let steps = retry.steps();
            let longest = steps.iter().copied().max().unwrap_or_default();
            exponential(attempts, steps.first().copied().unwrap_or(longest), longest, 2.0)
        }
    }
}

fn seconds(seconds: u64) -> prost_types::Duration {
    milliseconds(seconds * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(client_type: ClientType) -> Settings {
        let subscription = v2::Subscription {
            group: Some(v2::Resource { resource_namespace: String::new(), name: "g".into() }),
            ..v2::Subscription::default()
        };
        Settings {
            client_type: Some(client_type as i32),
            pub_sub: Some(PubSub::Subscription(subscription)),
            ..Settings::default()
        }
    }

    fn publishing() -> Settings {
        let topic = v2::Resource { resource_namespace: String::new(), name: "t".into() };
        let publishing = v2::Publishing { topics: vec![topic], ..v2::Publishing::default() };
        Settings {
            client_type: Some(ClientType::Producer as i32),
            pub_sub: Some(PubSub::Publishing(publishing)),
            ..Settings::default()
        }
    }

    fn strategy(asked: Settings, language: Language) -> (i32, Strategy) {
        let reply = reply(asked, language, &GroupSettings::default(), &Limits::default()).expect("built");
        let policy = reply.backoff_policy.expect("always");
        (policy.max_attempts, policy.strategy.expect("always"))
    }

    #[test]
    fn a_producer_gets_an_exponential_backoff_and_the_body_limit() {
        let group = GroupSettings::default();
        let reply = reply(publishing(), Language::Other, &group, &Limits::default()).expect("built");
        let Some(PubSub::Publishing(publishing)) = reply.pub_sub else { panic!("not publishing") };
        assert_eq!((publishing.max_body_size, publishing.validate_message_type), (4 << 20, true));
        assert_eq!(publishing.topics[0].name, "t");
        assert_eq!(reply.metric, Some(Metric { on: false, endpoints: None }));
        let (attempts, strategy) = strategy(self::publishing(), Language::Other);
        assert!(matches!(strategy, Strategy::ExponentialBackoff(_)) && attempts == 3);
    }

    #[test]
    fn a_consumer_gets_a_customized_backoff_except_a_push_consumer_in_node() {
        for kind in [ClientType::SimpleConsumer, ClientType::PushConsumer, ClientType::PullConsumer] {
            let (attempts, strategy) = strategy(subscription(kind), Language::Other);
            let Strategy::CustomizedBackoff(backoff) = strategy else { panic!("{kind:?}") };
            assert_eq!((attempts, backoff.next.len()), (17, 16));
        }
        let node = |kind| matches!(strategy(subscription(kind), Language::Node).1, Strategy::ExponentialBackoff(_));
        assert!(node(ClientType::PushConsumer));
        assert!(!node(ClientType::SimpleConsumer));
    }

    #[test]
    fn a_consumer_learns_whether_its_group_is_ordered() {
        let group = GroupSettings { fifo: true, retry: Retry::usual(true) };
        let reply = reply(subscription(ClientType::PushConsumer), Language::Other, &group, &Limits::default());
        let Some(PubSub::Subscription(subscription)) = reply.expect("built").pub_sub else { panic!("no subscription") };
        assert_eq!((subscription.fifo, subscription.receive_batch_size), (Some(true), Some(32)));
        assert_eq!(subscription.long_polling_timeout, Some(prost_types::Duration { seconds: 20, nanos: 0 }));
        assert_eq!(subscription.group.expect("kept").name, "g");
    }

    #[test]
    fn a_consumer_learns_how_often_its_group_gets_a_message_and_the_delays_in_between() {
        let policy = |language, attempts, delays| {
            let retry = Retry::new(attempts, delays).expect("in range");
            let group = GroupSettings { fifo: false, retry };
            let asked = subscription(ClientType::PushConsumer);
            let policy = reply(asked, language, &group, &Limits::default()).expect("built").backoff_policy;
            let policy = policy.expect("always");
            (policy.max_attempts, policy.strategy.expect("always"))
        };
        let ms = |duration: Option<prost_types::Duration>| {
            let duration = duration.expect("set");
            duration.seconds * 1000 + i64::from(duration.nanos) / 1_000_000
        };
        let (attempts, Strategy::CustomizedBackoff(delays)) =
            policy(Language::Other, 4, Delays::Exponential { initial_ms: 500, max_ms: 9000, factor_percent: 300 })
        else {
            panic!("not customized")
        };
        let delays: Vec<i64> = delays.next.into_iter().map(|delay| ms(Some(delay))).collect();
        assert_eq!((attempts, delays), (4, vec![500, 1500, 4500]));
        for (delays, expected) in [
            (Delays::Exponential { initial_ms: 500, max_ms: 9000, factor_percent: 300 }, (500, 9000, 3.0)),
            (Delays::Ladder(vec![3000]), (3000, 3000, 2.0)),
            (Delays::usual(false), (10_000, 7_200_000, 2.0)),
        ] {
            let (17, Strategy::ExponentialBackoff(found)) = policy(Language::Node, 17, delays) else {
                panic!("not exponential")
            };
            assert_eq!((ms(found.initial), ms(found.max), found.multiplier), expected);
        }
    }

    #[test]
    fn the_reply_carries_status_ok_or_the_reason() {
        let limits = Limits::default();
        let status = |asked| {
            command(reply(asked, Language::Other, &GroupSettings::default(), &limits)).status.expect("always").code
        };
        assert_eq!(status(publishing()), 20000);
        assert_eq!(status(Settings { client_type: Some(0), ..publishing() }), 20000);
        assert_eq!(status(Settings::default()), 40000);
        assert_eq!(status(subscription(ClientType::LitePushConsumer)), 50100);
        assert_eq!(status(Settings { client_type: Some(99), ..publishing() }), 40015);
        let bad = [("1".to_owned(), String::new())].into();
        assert_eq!(status(Settings { client_properties: bad, ..publishing() }), 40021);
    }
}
