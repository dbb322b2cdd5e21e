"""The benchmark of growth: powers are those of the numbers, and a pass is measured as it runs."""

from __future__ import annotations

from benchmarks.growth import NETWORKS, one_size, table


def test_the_table_has_the_powers_of_made_up_numbers() -> None:
    def sizes(power: float) -> list[dict[str, float]]:
        patches = (196, 3136, 16384)
        return [{"patches": n, "seconds": 1e-6 * n**power, "growth_bytes": 100.0 * n} for n in patches]

    shown = table({"sizes": {"one": sizes(1.0), "another": sizes(2.0)}})
    assert "| power of the patches, 196 to 16,384 | 1.00 | 1.00 | 2.00 | 1.00 |" in shown
    assert "| power of the patches, 3,136 to 16,384 | 1.00 | 1.00 | 2.00 | 1.00 |" in shown


def test_each_network_runs_at_the_smallest_size() -> None:
    for name in NETWORKS.values():
        found = one_size(name, side=2, depth=1, rounds=2)
        assert found["patches"] == 4 and len(found["rounds"]) == 2 and found["growth_bytes"] >= 0
