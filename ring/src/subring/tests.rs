use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ring(groups: impl IntoIterator<Item = u32>) -> Ring {
    Ring::new(groups.into_iter().map(GroupId)).unwrap()
}

fn tokens(count: u32) -> impl Iterator<Item = Token> {
    (0..count).map(|i| (mix(u64::from(i)) >> 32) as Token)
}

/// (max − min) / mean of what the positions of a subring hold of evenly spread tokens.
fn unevenness(subring: &Subring, tokens: impl Iterator<Item = Token>) -> f64 {
    let mut held = vec![0_u32; subring.groups().len()];
    tokens.for_each(|token| held[subring.position_of(token)] += 1);
    let mean = f64::from(held.iter().sum::<u32>()) / held.len() as f64;
    f64::from(held.iter().max().unwrap() - held.iter().min().unwrap()) / mean
}

/// DESIGN's figure is 25 %; what is seen here is mostly the noise of 40,000 series.
#[test]
fn shards_of_four_are_even() {
    for groups in [4, 5, 10, 33, 100] {
        let ring = ring(0..groups);
        for tenant in 0..20 {
            let shard = Subring::shard(&ring, &format!("tenant-{tenant}"), 4);
            let unevenness = unevenness(&shard, tokens(40_000));
            assert!(unevenness < 0.06, "tenant {tenant} among {groups}: {unevenness}");
        }
    }
}

#[test]
fn larger_shards_are_even_too() {
    let ring = ring(0..200);
    for size in [16, MAX_COMPARED, MAX_COMPARED + 1, 150] {
        let shard = Subring::shard(&ring, "big", size);
        assert_eq!(shard.groups().len(), size);
        // 2,000 series a group: ±3 standard deviations are 13 %.
        let unevenness = unevenness(&shard, tokens(2_000 * size as u32));
        assert!(unevenness < 0.18, "{size}: {unevenness}");
    }
}

#[test]
fn tenants_choose_all_groups_alike_and_rarely_the_same_shard() {
    let ring = ring(0..50);
    let mut chosen = [0; 50];
    let mut shards = BTreeSet::new();
    for tenant in 0..2000 {
        let shard = Subring::shard(&ring, &format!("t{tenant}"), 4);
        shard.groups().iter().for_each(|group| chosen[group.0 as usize] += 1);
        shards.insert(shard.groups().to_vec());
    }
    assert!(shards.len() > 1980, "{}", shards.len());
    // 160 expected, standard deviation 12.
    assert!(chosen.iter().all(|count| (110..210).contains(count)), "{chosen:?}");
}

/// Placement is a contract between builds, as tokens are.
#[test]
fn shards_are_stable() {
    let shard = Subring::shard(&ring(0..20), "anonymous", 4);
    let holders: Vec<_> = tokens(8).map(|token| shard.groups()[shard.position_of(token)].0).collect();
    assert_eq!(shard.groups().iter().map(|group| group.0).collect::<Vec<_>>(), [5, 11, 13, 19]);
    assert_eq!(holders, [11, 11, 19, 19, 5, 13, 19, 5]);
}

#[test]
fn what_a_group_cannot_take_is_spread_evenly_and_the_rest_stays() {
    for size in [5, 80] {
        let shard = Subring::shard(&ring(0..100), "t", size);
        let mut usable = shard.positions();
        usable.remove(2);
        let mut taken = vec![0; size];
        for token in tokens(20_000 * size as u32 / 5) {
            let (holder, taker) = (shard.position_of(token), shard.position_among(token, &usable).unwrap());
            assert!(taker != 2 && (holder == taker || holder == 2));
            taken[taker] += u32::from(holder == 2);
        }
        let most = *taken.iter().max().unwrap();
        assert!(most < taken.iter().sum::<u32>() / (size as u32 - 1) * 6 / 5 + 50, "{taken:?}");
        assert_eq!(shard.position_among(7, &Positions::default()), None);
        assert_eq!(shard.position_among(7, &[4].into_iter().collect()), Some(4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_group_that_comes_or_goes_changes_one_member_and_moves_its_keys_only(
        groups in prop::collection::btree_set(0_u32..100, 2..40),
        newcomer in 0_u32..100,
        size in 1_usize..20,
        tenant in "[a-z]{1,8}",
    ) {
        prop_assume!(!groups.contains(&newcomer));
        let before = Subring::shard(&ring(groups.iter().copied()), &tenant, size);
        let after = Subring::shard(&ring(groups.iter().copied().chain([newcomer])), &tenant, size);
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (before.groups().iter().copied().collect(), after.groups().iter().copied().collect());
        let come: Vec<_> = new.difference(&old).copied().collect();
        let gone: Vec<_> = old.difference(&new).copied().collect();
        prop_assert!(come.is_empty() || come == [GroupId(newcomer)], "{:?}", come);
        prop_assert!(gone.len() <= come.len());
        for token in tokens(500) {
            let holder = before.groups()[before.position_of(token)];
            let now = after.groups()[after.position_of(token)];
            prop_assert!(holder == now || come.contains(&now) || gone.contains(&holder));
        }
    }

    #[test]
    fn small_shards_lie_within_larger_ones(groups in prop::collection::btree_set(0_u32..100, 2..40), tenant in "[a-z]{1,8}") {
        let ring = ring(groups.iter().copied());
        for size in 1..groups.len() {
            let small = Subring::shard(&ring, &tenant, size);
            let large = Subring::shard(&ring, &tenant, size + 1);
            prop_assert!(small.groups().iter().all(|group| large.groups().contains(group)));
        }
    }
}
