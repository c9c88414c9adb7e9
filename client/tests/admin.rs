//! What operators' calls do.

mod fake;

use fake::{Answer, Cluster};
use quorate_client::{AdminError, CallError, DeadLetterPlace, ShowDeadLettersRequest, TopicType};
use tokio::time::Instant;

const THREE: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"];

#[tokio::test(start_paused = true)]
async fn any_endpoint_answers_and_the_next_is_asked_when_one_is_dead() {
    let cluster = Cluster::start(&THREE);
    cluster.kill(THREE[0]);
    let admin = cluster.client(&THREE.join(";")).admin();
    let names: Vec<String> = admin.list_topics().await.unwrap().into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(cluster.calls_of("list_topics"), [THREE[1]]);
    assert_eq!(admin.describe_topic("x").await.unwrap().queues, 4);
    admin.cluster_status().await.unwrap();
    let tellers: Vec<u32> = admin.leader_history().await.unwrap().into_iter().map(|node| node.number).collect();
    assert_eq!(tellers, [1, 2], "sorted");
    let moved = admin.transfer_leadership(3).await.unwrap();
    assert_eq!((moved.from, moved.to, moved.term), (1, 3, 7));
    admin.list_groups().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_is_repeated_only_if_it_certainly_had_no_effect() {
    let cluster = Cluster::start(&THREE);
    let admin = cluster.client(&THREE.join(";")).admin();
    cluster.say([Answer::Code(50002), Answer::Fine]);
    admin.create_topic("t", 8, TopicType::Normal).await.unwrap();
    cluster.say([Answer::Code(50402), Answer::Fine]);
    assert!(matches!(admin.delete_topic("t", false).await, Err(AdminError::Unknown { code: 50402, .. })));
    assert_eq!(cluster.calls_of("delete_topic").len(), 1);
    cluster.script.lock().unwrap().clear();
    cluster.say([Answer::Code(40403)]);
    assert!(matches!(admin.delete_group("g").await, Err(AdminError::Refused { code: 40403, .. })));
    admin.create_group("g", true).await.unwrap();
}

/// What was redriven is known to the broker, so an unknown outcome is asked for again.
#[tokio::test(start_paused = true)]
async fn a_redrive_is_repeated_until_it_is_known_what_became_of_it() {
    let cluster = Cluster::start(&THREE);
    let admin = cluster.client(&THREE.join(";")).admin();
    cluster.say([Answer::Code(50402), Answer::Code(50002), Answer::Fine]);
    let place = DeadLetterPlace { queue: 0, offset: 7 };
    let results = admin.redrive_dead_letters("g", vec![place], None).await.unwrap();
    assert_eq!((results.len(), results[0].place), (1, Some(place)));
    assert_eq!(cluster.calls_of("redrive_dead_letters").len(), 3);
    let groups = admin.list_dead_letters().await.unwrap();
    assert_eq!(groups.iter().map(|topic| topic.group.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    cluster.say([Answer::Code(40400)]);
    let asked = admin.show_dead_letters(ShowDeadLettersRequest { group: "g".into(), ..Default::default() });
    assert!(matches!(asked.await, Err(AdminError::Refused { code: 40400, .. })));
}

#[tokio::test(start_paused = true)]
async fn with_nobody_there_an_operator_does_not_wait_long() {
    let cluster = Cluster::start(&[]);
    let admin = cluster.client(&THREE.join(";")).admin();
    let start = Instant::now();
    assert!(matches!(admin.list_topics().await, Err(AdminError::NotNow { code: 0, .. })));
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_group_is_described_by_any_node_and_a_reset_of_unknown_outcome_is_not_repeated() {
    let cluster = Cluster::start(&THREE);
    let admin = cluster.client(&THREE.join(";")).admin();
    cluster.say([Answer::Code(50001), Answer::Fine]);
    assert_eq!(admin.describe_group("g").await.unwrap().now_ms, 7);
    assert_eq!(cluster.calls_of("describe_group").len(), 2);

    let place = quorate_client::ResetPlace { queue: 3, offset: 9 };
    let request = quorate_client::ResetOffsetsRequest { places: vec![place], ..Default::default() };
    assert_eq!(admin.reset_offsets(request.clone()).await.unwrap()[0].to, 9);
    cluster.say([Answer::Code(50402)]);
    assert!(matches!(admin.reset_offsets(request.clone()).await, Err(CallError::Unknown { code: 50402, .. })));
    cluster.say([Answer::Code(40019)]);
    assert!(matches!(admin.reset_offsets(request).await, Err(CallError::Refused { code: 40019, .. })));
    assert_eq!(cluster.calls_of("reset_offsets").len(), 3);
}
