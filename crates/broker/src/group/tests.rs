use super::member::Protocol;
use super::*;

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits {
    members: 10,
    metadata_bytes: 10_000,
};

fn params(member_id: &str) -> JoinParams {
    JoinParams {
        member_id: member_id.to_owned(),
        instance_id: None,
        client_id: "client".to_owned(),
        client_host: "host".to_owned(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
        protocol_type: "consumer".to_owned(),
        protocols: vec![Protocol {
            name: "range".to_owned(),
            metadata: Bytes::from_static(b"topics"),
        }],
        takes_member_id: true,
        can_skip_assignment: true,
    }
}

fn static_params(member_id: &str, instance: &str) -> JoinParams {
    JoinParams {
        instance_id: Some(instance.to_owned()),
        ..params(member_id)
    }
}

fn group() -> Group {
    Group::new(Duration::ZERO, LIMITS)
}

fn waiting<T>(step: Step<T>) -> oneshot::Receiver<T> {
    match step {
        Step::Wait(receiver) => receiver,
        Step::Now(_) => panic!("answered at once"),
    }
}

fn now_of<T>(step: Step<T>) -> T {
    match step {
        Step::Now(answer) => answer,
        Step::Wait(_) => panic!("has to wait"),
    }
}

/// Takes an id and joins with it.
fn enter(group: &mut Group, now: Instant) -> (String, oneshot::Receiver<Joined>) {
    let first = now_of(group.join(&params(""), now));
    assert_eq!(first.error, E::MemberIdRequired.code());
    let id = first.member_id;
    let receiver = waiting(group.join(&params(&id), now));
    (id, receiver)
}

/// A stable group of two, the leader first.
fn stable_pair(now: Instant) -> (Group, String, String) {
    let mut group = group();
    let (a, mut joined) = enter(&mut group, now);
    assert_eq!(joined.try_recv().unwrap().leader, a);
    let (b, mut joined_b) = enter(&mut group, now);
    assert_eq!(
        group.heartbeat(&a, None, 1, now),
        Err(E::RebalanceInProgress)
    );
    let mut joined_a = waiting(group.join(&params(&a), now));
    let leader = joined_a.try_recv().unwrap();
    assert_eq!((leader.generation, leader.members.len()), (2, 2));
    assert!(joined_b.try_recv().unwrap().members.is_empty());
    let mut follower = waiting(group.sync(&b, None, 2, vec![], now));
    let assignments = vec![
        (a.clone(), Bytes::from_static(b"A")),
        (b.clone(), Bytes::from_static(b"B")),
    ];
    let mut leader = waiting(group.sync(&a, None, 2, assignments, now));
    assert_eq!(leader.try_recv().unwrap().assignment, "A");
    assert_eq!(follower.try_recv().unwrap().assignment, "B");
    assert_eq!(group.state, State::Stable);
    (group, a, b)
}

#[test]
fn two_members_join_and_get_their_assignments() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    assert_eq!(group.heartbeat(&a, None, 2, now), Ok(()));
    assert_eq!(group.heartbeat(&b, None, 1, now), Err(E::IllegalGeneration));
    assert_eq!(group.heartbeat("x", None, 2, now), Err(E::UnknownMemberId));
}

#[test]
fn leaving_makes_the_rest_join_again() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    group.leave(&b, None, now).unwrap();
    assert_eq!(
        group.heartbeat(&a, None, 2, now),
        Err(E::RebalanceInProgress)
    );
    let mut joined = waiting(group.join(&params(&a), now));
    assert_eq!(joined.try_recv().unwrap().generation, 3);
    group.leave(&a, None, now).unwrap();
    assert!(group.is_idle());
    assert_eq!(group.state, State::Empty);
}

#[test]
fn a_silent_member_is_dropped_after_its_session() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    let later = now + SESSION - Duration::from_millis(1);
    group.heartbeat(&a, None, 2, later).unwrap();
    group.tick(later);
    assert_eq!(group.members.len(), 2);
    group.tick(now + SESSION);
    assert_eq!(group.members.len(), 1);
    assert_eq!(group.heartbeat(&b, None, 2, later), Err(E::UnknownMemberId));
    assert_eq!(group.state, State::PreparingRebalance);
}

#[test]
fn members_that_do_not_rejoin_in_time_are_left_behind() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    let (_, mut joined) = enter(&mut group, now);
    let mut time = now;
    while time < now + REBALANCE {
        time += SESSION / 2;
        // They live, but do not come to the rebalance.
        let _ = group.heartbeat(&a, None, 2, time);
        let _ = group.heartbeat(&b, None, 2, time);
        group.tick(time);
    }
    let joined = joined.try_recv().unwrap();
    assert_eq!((joined.error, joined.members.len()), (0, 1));
    assert_eq!(group.heartbeat(&a, None, 2, time), Err(E::UnknownMemberId));
}

#[test]
fn a_client_that_hangs_up_while_joining_does_not_hold_the_group_up_for_long() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    let (_, joined) = enter(&mut group, now);
    drop(joined);
    let mut joined_a = waiting(group.join(&params(&a), now));
    let _joined_b = waiting(group.join(&params(&b), now));
    assert!(joined_a.try_recv().is_err());
    group.tick(now + SESSION);
    assert_eq!(joined_a.try_recv().unwrap().members.len(), 2);
}

#[test]
fn a_member_that_never_syncs_is_dropped() {
    let now = Instant::now();
    let mut group = group();
    let (a, mut joined) = enter(&mut group, now);
    joined.try_recv().unwrap();
    let mut time = now;
    while time <= now + REBALANCE {
        time += SESSION / 2;
        let _ = group.heartbeat(&a, None, 1, time);
        group.tick(time);
    }
    assert!(group.members.is_empty());
}

#[test]
fn a_repeated_join_gets_the_same_answer_and_a_changed_one_a_rebalance() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    let again = now_of(group.join(&params(&b), now));
    assert_eq!((again.generation, again.leader.as_str()), (2, a.as_str()));
    let mut changed = params(&b);
    changed.protocols[0].metadata = Bytes::from_static(b"other topics");
    let _wait = waiting(group.join(&changed, now));
    assert_eq!(group.state, State::PreparingRebalance);
}

#[test]
fn a_static_member_comes_back_unnoticed_and_its_old_self_is_fenced() {
    let now = Instant::now();
    let mut group = group();
    let mut joined = waiting(group.join(&static_params("", "one"), now));
    let first = joined.try_recv().unwrap();
    let id = first.member_id.clone();
    let assignments = vec![(id.clone(), Bytes::from_static(b"A"))];
    waiting(group.sync(&id, Some("one"), 1, assignments, now))
        .try_recv()
        .unwrap();

    let back = now_of(group.join(&static_params("", "one"), now));
    assert_eq!((back.error, back.generation), (0, 1));
    assert!(back.skip_assignment && back.member_id != id);
    let synced = now_of(group.sync(&back.member_id, Some("one"), 1, vec![], now));
    assert_eq!(synced.assignment, "A");
    assert_eq!(
        group.heartbeat(&id, Some("one"), 1, now),
        Err(E::FencedInstanceId)
    );
    group.leave("", Some("one"), now).unwrap();
    assert!(group.is_idle());
}

#[test]
fn commits_are_taken_from_the_current_generation_only() {
    let now = Instant::now();
    let (mut group, a, _) = stable_pair(now);
    assert_eq!(group.check_commit(&a, None, 2, now), Ok(()));
    assert_eq!(
        group.check_commit(&a, None, 1, now),
        Err(E::IllegalGeneration)
    );
    assert_eq!(
        group.check_commit("", None, -1, now),
        Err(E::UnknownMemberId)
    );
    assert_eq!(self::group().check_commit("", None, -1, now), Ok(()));
}

#[test]
fn members_need_a_protocol_in_common_and_the_votes_decide() {
    let now = Instant::now();
    let (mut group, ..) = stable_pair(now);
    let mut stranger = params("");
    stranger.protocols[0].name = "sticky".to_owned();
    let refused = now_of(group.join(&stranger, now));
    assert_eq!(refused.error, E::InconsistentGroupProtocol.code());
}

#[test]
fn the_size_of_a_group_is_bounded() {
    let now = Instant::now();
    let limits = Limits {
        members: 2,
        ..LIMITS
    };
    let mut group = Group::new(Duration::ZERO, limits);
    now_of(group.join(&params(""), now));
    now_of(group.join(&params(""), now));
    let refused = now_of(group.join(&params(""), now));
    assert_eq!(refused.error, E::GroupMaxSizeReached.code());
    group.tick(now + SESSION);
    assert!(group.is_idle());
}

#[test]
fn what_members_say_and_are_assigned_is_bounded() {
    let now = Instant::now();
    let (mut group, a, b) = stable_pair(now);
    let mut large = params(&b);
    large.protocols[0].metadata = Bytes::from(vec![7; LIMITS.metadata_bytes]);
    let refused = now_of(group.join(&large, now));
    assert_eq!(refused.error, E::GroupMaxSizeReached.code());
    assert_eq!(group.state, State::Stable);
    // What a member said before makes room for what it says now.
    large.protocols[0].metadata = Bytes::from(vec![7; LIMITS.metadata_bytes * 3 / 4]);
    let _first = waiting(group.join(&large, now));
    let _again = waiting(group.join(&large, now));
    let mut joined = waiting(group.join(&params(&a), now));
    let generation = joined.try_recv().unwrap().generation;
    let assignments = vec![(a.clone(), Bytes::from(vec![7; LIMITS.metadata_bytes + 1]))];
    let refused = now_of(group.sync(&a, None, generation, assignments, now));
    assert_eq!(refused.error, E::InvalidRequest.code());
}

#[test]
fn a_new_group_waits_for_its_initial_delay() {
    let now = Instant::now();
    let delay = Duration::from_secs(3);
    let mut group = Group::new(delay, LIMITS);
    let (_, mut joined) = enter(&mut group, now);
    group.tick(now + delay / 2);
    assert!(joined.try_recv().is_err());
    group.tick(now + delay);
    assert_eq!(joined.try_recv().unwrap().generation, 1);
}
