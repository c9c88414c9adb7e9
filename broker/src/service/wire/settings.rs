//! The settings a client gets in answer to its own.
//!
//! Clients wait for them at start and crash or hang over details, so the rules are narrow: the status is OK (Python ignores the reply
//! otherwise), a backoff policy is always there, exponential for producers and customized for consumers, except for push consumers
//! in Node, which only read exponential ones; metrics are off; what the client said about itself comes back as it was.

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
use crate::{config::Limits, session::Language};

/// Delays between the attempts to deliver to a push consumer: RocketMQ's 10 s to 2 h, 16 of them.
const RETRY_DELAYS_S: [u64; 16] = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
/// What a push consumer asks for at once.
const RECEIVE_BATCH: i32 = 32;
/// What a push consumer's receive waits; whole seconds, for Python.
const LONG_POLL: Duration = Duration::from_secs(20);

/// The reply to `asked`. `fifo` is what the broker knows of a consumer's group.
///
/// # Errors
/// A client type that is not built, or illegal client properties.
pub(crate) fn reply(asked: Settings, language: Language, fifo: bool, limits: &Limits) -> Result<Settings, Fault> {
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
            fifo: Some(fifo),
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
            (true, _) => exponential(3, Duration::from_millis(10), Duration::from_secs(1)),
            (false, true) => exponential(17, Duration::from_secs(10), Duration::from_secs(7200)),
            (false, false) => customized(),
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

fn exponential(max_attempts: i32, initial: Duration, max: Duration) -> RetryPolicy {
    let ms = |duration: Duration| milliseconds(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    let backoff = ExponentialBackoff { initial: Some(ms(initial)), max: Some(ms(max)), multiplier: 2.0 };
    RetryPolicy { max_attempts, strategy: Some(Strategy::ExponentialBackoff(backoff)) }
}

fn customized() -> RetryPolicy {
    let next = RETRY_DELAYS_S.map(seconds).to_vec();
    // The first delivery and one more after each delay.
    let max_attempts = RETRY_DELAYS_S.len() as i32 + 1;
    RetryPolicy { max_attempts, strategy: Some(Strategy::CustomizedBackoff(CustomizedBackoff { next })) }
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
        let reply = reply(asked, language, false, &Limits::default()).expect("built");
        let policy = reply.backoff_policy.expect("always");
        (policy.max_attempts, policy.strategy.expect("always"))
    }

    #[test]
    fn a_producer_gets_an_exponential_backoff_and_the_body_limit() {
        let reply = reply(publishing(), Language::Other, false, &Limits::default()).expect("built");
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
        let reply = reply(subscription(ClientType::PushConsumer), Language::Other, true, &Limits::default());
        let Some(PubSub::Subscription(subscription)) = reply.expect("built").pub_sub else { panic!("no subscription") };
        assert_eq!((subscription.fifo, subscription.receive_batch_size), (Some(true), Some(32)));
        assert_eq!(subscription.long_polling_timeout, Some(prost_types::Duration { seconds: 20, nanos: 0 }));
        assert_eq!(subscription.group.expect("kept").name, "g");
    }

    #[test]
    fn the_reply_carries_status_ok_or_the_reason() {
        let limits = Limits::default();
        let status = |asked| command(reply(asked, Language::Other, false, &limits)).status.expect("always").code;
        assert_eq!(status(publishing()), 20000);
        assert_eq!(status(Settings { client_type: Some(0), ..publishing() }), 20000);
        assert_eq!(status(Settings::default()), 40000);
        assert_eq!(status(subscription(ClientType::LitePushConsumer)), 50100);
        assert_eq!(status(Settings { client_type: Some(99), ..publishing() }), 40015);
        let bad = [("1".to_owned(), String::new())].into();
        assert_eq!(status(Settings { client_properties: bad, ..publishing() }), 40021);
    }
}
