//! Telemetry, Heartbeat and NotifyClientTermination: what clients say about themselves.
//!
//! Settings are answered by any node from what it knows, leader or not: several clients do not start before they have them. The
//! stream then stays open for what a broker may want to tell a client: here, that a producer is asked about its half messages. Nothing
//! depends on it being open, or open here; a half message waits until some producer of its topic has a stream somewhere.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use quorate_proto::{
    names::GroupName,
    v2::{
        ClientType, HeartbeatRequest, HeartbeatResponse, NotifyClientTerminationRequest,
        NotifyClientTerminationResponse, RecoverOrphanedTransactionCommand, Settings, SubscriptionEntry,
        TelemetryCommand, settings::PubSub, telemetry_command::Command,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    Client, Service,
    forward::{Undone, Until},
    producers::Seat,
    unread::{self, Asked},
    wire::{
        convert,
        settings::{self, GroupSettings},
        status::{Fault, ok},
        validate,
    },
};
use crate::{
    leader::{calls, checks::Check},
    machine::Group,
};

/// Longest wait for the leader to hear of a consumer, well below what clients wait for their settings.
const HEARD: Duration = Duration::from_millis(500);

/// The answers of a Telemetry stream.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<TelemetryCommand, Status>> + Send>>;

/// What a Telemetry stream needs while it is open.
struct Open {
    service: Arc<Service>,
    client: Client,
    inbound: Streaming<TelemetryCommand>,
    seat: Seat,
    closing: CancellationToken,
    /// The last answer is given.
    ended: bool,
}

impl Service {
    /// Answers each Settings of the client; ends when the client ends or the listener closes.
    pub fn telemetry(self: Arc<Self>, client: Client, inbound: Streaming<TelemetryCommand>) -> Answers {
        let closing = self.closing();
        let seat = self.producers.seat();
        let open = Open { service: self, client, inbound, seat, closing, ended: false };
        Box::pin(stream::unfold(open, |mut open| async {
            let answer = open.next().await?;
            Some((Ok(answer), open))
        }))
    }

    fn settings(&self, client: &Client, asked: Settings) -> Result<Settings, Fault> {
        self.heard(client.id()?);
        let group = match &asked.pub_sub {
            Some(PubSub::Subscription(subscription)) => {
                self.group(&validate::group(subscription.group.as_ref(), &client.namespace)?)
            }
            Some(PubSub::Publishing(_)) | None => GroupSettings::default(),
        };
        settings::reply(asked, client.language, &group, &self.config.limits)
    }

    /// Tells the leader what a consumer is going to receive, so that consumers of a group that do not agree are noticed before they do.
    /// Settings are answered without a leader, too: then the first receive tells it.
    async fn subscribe(&self, client: &Client, asked: &Settings) -> Result<(), Fault> {
        let Some(PubSub::Subscription(subscription)) = &asked.pub_sub else { return Ok(()) };
        let Ok(group) = validate::group(subscription.group.as_ref(), &client.namespace) else { return Ok(()) };
        let (group, client_id) = (group.to_string(), client.id()?.to_owned());
        let topic = |entry: &SubscriptionEntry| {
            let topic = validate::topic(entry.topic.as_ref(), &client.namespace).ok()?.to_string();
            Some(calls::SubscribeTo { topic, filter: validate::filter(entry.expression.as_ref()).ok()? })
        };
        let topics: Vec<_> = subscription.subscriptions.iter().filter_map(topic).collect();
        if topics.is_empty() {
            return Ok(());
        }
        let pulls = asked.client_type == Some(ClientType::PullConsumer as i32);
        match self.dispatch.call(calls::Subscribe { group, client_id, topics, pulls }, soon()).await {
            Err(Undone::Refused(fault)) => Err(fault),
            Ok(_) | Err(Undone::NotNow | Undone::Overloaded | Undone::Unknown) => Ok(()),
        }
    }

    fn group(&self, group: &GroupName) -> GroupSettings {
        let known = |group: &Group| GroupSettings { fifo: group.is_fifo(), retry: group.retry().clone() };
        self.shared.read(|machine| machine.group(group).map(known)).unwrap_or_default()
    }

    /// The client is there. Always fine: no session has to be known for it.
    pub fn heartbeat(&self, client: &Client, _request: &HeartbeatRequest) -> HeartbeatResponse {
        let status = match client.id() {
            Ok(id) => {
                self.heard(id);
                ok()
            }
            Err(fault) => fault.into(),
        };
        HeartbeatResponse { status: Some(status) }
    }

    /// The client goes; what it holds comes back when its time runs out. Always fine: without a leader nobody has to know.
    pub async fn notify_client_termination(
        &self,
        client: &Client,
        request: &NotifyClientTerminationRequest,
    ) -> NotifyClientTerminationResponse {
        let status = match client.id() {
            Ok(id) => {
                self.sessions.remove(id);
                if let Ok(group) = validate::group(request.group.as_ref(), &client.namespace) {
                    let call = calls::Farewell { group: group.to_string(), client_id: id.to_owned() };
                    // What nobody takes now is forgotten after a minute.
                    drop(self.dispatch.call(call, soon()).await);
                }
                ok()
            }
            Err(fault) => fault.into(),
        };
        NotifyClientTerminationResponse { status: Some(status) }
    }
}

/// For what the leader should hear of and need not.
fn soon() -> Until {
    let until = Instant::now() + HEARD;
    Until { answer: until, wait: until }
}

impl Open {
    /// The next answer, or the next check of a half message. Commands other than Settings answer questions that this broker does not ask,
    /// and are passed over.
    async fn next(&mut self) -> Option<TelemetryCommand> {
        loop {
            if self.ended {
                return None;
            }
            let command = tokio::select! {
                command = self.inbound.message() => command,
                check = self.seat.next() => match self.question(check) {
                    Some(question) => return Some(question),
                    None => continue,
                },
                () = self.closing.cancelled() => return None,
            };
            let command = match command {
                Ok(command) => command?,
                Err(status) => {
                    // Where a message ends is not known after one that could not be read. Otherwise the client is gone.
                    self.ended = true;
                    let fault = unread::fault(Asked::Messaging, &status, &self.service.config.limits)?;
                    return Some(settings::command(Err(fault)));
                }
            };
            match command.command {
                Some(Command::Settings(asked)) => {
                    self.note_topics(&asked);
                    let subscribed = self.service.subscribe(&self.client, &asked).await;
                    let answer = self.service.settings(&self.client, asked);
                    return Some(settings::command(subscribed.and(answer)));
                }
                Some(
                    Command::ThreadStackTrace(_)
                    | Command::VerifyMessageResult(_)
                    | Command::RecoverOrphanedTransactionCommand(_)
                    | Command::PrintThreadStackTraceCommand(_)
                    | Command::VerifyMessageCommand(_)
                    | Command::ReconnectEndpointsCommand(_)
                    | Command::NotifyUnsubscribeLiteCommand(_),
                )
                | None => {}
            }
        }
    }

    /// Takes note of the topics that a producer sends to, as its settings list them.
    fn note_topics(&self, settings: &Settings) {
        if let Some(PubSub::Publishing(publishing)) = &settings.pub_sub {
            let name = |topic| validate::topic(Some(topic), &self.client.namespace).ok();
            self.seat.listen(publishing.topics.iter().filter_map(name).map(|name| name.to_string()));
        }
    }

    /// A check as the producer gets it. `None` for bytes that are no message, which only a bug can bring about.
    fn question(&self, check: Check) -> Option<TelemetryCommand> {
        let transaction_id = check.transaction_id.clone();
        let message = Some(convert::to_half_message(check, &self.service.address)?);
        let command = RecoverOrphanedTransactionCommand { message, transaction_id };
        let command = Command::RecoverOrphanedTransactionCommand(command);
        Some(TelemetryCommand { status: Some(ok()), command: Some(command) })
    }
}
