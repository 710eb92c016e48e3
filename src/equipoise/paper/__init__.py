"""The report of a reproduction: findings to tables, pictures and one page, without torch."""
