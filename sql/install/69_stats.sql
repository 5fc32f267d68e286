-- Figures of what became of mail.

-- Does the account's provider tell of complaints?  Where nobody does, none is no good sign.
CREATE FUNCTION kliv_mail._reports_complaints(p_account text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM kliv_mail._account AS a JOIN kliv_mail._webhook AS w ON w.provider = a.provider WHERE a.name = p_account);
END;
$$;

CREATE FUNCTION kliv_mail._delivery_stats(p_caller name, p_since timestamptz, p_until timestamptz, p_bucket interval, p_group_by text)
RETURNS TABLE (bucket_start timestamptz, group_name text, finished bigint, accepted bigint, delivered bigint, bounced_hard bigint, bounced_soft bigint,
    blocked bigint, complained bigint, failed bigint, suppressed bigint, cancelled bigint, expired bigint, simulated bigint,
    bounce_rate numeric, complaint_rate numeric)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    IF p_since IS NULL OR p_until IS NULL OR p_since >= p_until OR p_since = '-infinity' OR p_until = 'infinity' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('since: %s is not before until (%s)', coalesce(p_since::text, 'NULL'), coalesce(p_until::text, 'NULL')),
            HINT = 'Give two times: since => now() - interval ''7 days''.';
    ELSIF p_bucket IS NULL OR extract(year FROM p_bucket) <> 0 OR extract(month FROM p_bucket) <> 0 OR p_bucket < interval '1 second' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('bucket: %s is not a length of time', coalesce('"' || p_bucket || '"', 'NULL')),
            HINT = 'Give days, hours, minutes or seconds: ''1 day''.';
    ELSIF extract(epoch FROM p_until - p_since) / extract(epoch FROM p_bucket) > 10000 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'bucket: over 10000 of them from since until until', HINT = 'Make them longer.';
    ELSIF p_group_by IS NULL OR p_group_by NOT IN ('account', 'message_type', 'topic', 'template', 'tag', 'domain') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('group_by: %s is not a choice', coalesce('"' || left(p_group_by, 100) || '"', 'NULL')),
            HINT = 'Use account, message_type, topic, template, tag or domain.';
    END IF;
    RETURN QUERY
        SELECT x.at, x.name, count(*), count(x.sent_at), count(*) FILTER (WHERE x.status IN ('delivered', 'complained')),
               count(*) FILTER (WHERE x.hard), count(*) FILTER (WHERE x.status = 'bounced' AND x.bounce_type = 'soft'),
               count(*) FILTER (WHERE x.bounce_type = 'policy'), count(*) FILTER (WHERE x.status = 'complained'),
               count(*) FILTER (WHERE x.status = 'failed'), count(*) FILTER (WHERE x.status = 'suppressed'),
               count(*) FILTER (WHERE x.status = 'cancelled'), count(*) FILTER (WHERE x.status = 'expired'), count(*) FILTER (WHERE x.simulated),
               kliv_mail._percent(count(*) FILTER (WHERE x.hard AND NOT x.simulated), count(*) FILTER (WHERE x.tried)),
               CASE WHEN bool_or(x.known) THEN kliv_mail._percent(count(*) FILTER (WHERE x.status = 'complained' AND NOT x.simulated),
                                                                 count(*) FILTER (WHERE x.sent_at IS NOT NULL AND NOT x.simulated)) END
        FROM (SELECT date_bin(p_bucket, d.finished_at, p_since) AS at,
                     CASE p_group_by WHEN 'account' THEN coalesce(d.account, nullif(d.route, ''), v.default_account)
                                     WHEN 'message_type' THEN (ARRAY['system', 'transactional', 'marketing'])[d.priority + 1]
                                     WHEN 'domain' THEN lower(split_part(d.recipient, '@', -1) COLLATE "C")
                                     WHEN 'topic' THEN (SELECT m.topic FROM kliv_mail._message AS m WHERE m.id = d.message_id)
                                     WHEN 'template' THEN (SELECT m.template FROM kliv_mail._message AS m WHERE m.id = d.message_id)
                                     WHEN 'tag' THEN t.tag END AS name,
                     d.status, d.bounce_type, d.sent_at, d.simulated, d.status = 'bounced' AND d.bounce_type = 'hard' AS hard,
                     -- What a server judged.
                     NOT d.simulated AND (d.sent_at IS NOT NULL OR d.status = 'bounced' OR d.bounce_type = 'policy') AS tried,
                     d.status = 'complained' OR c.reports AS known
              FROM kliv_mail._delivery AS d
              CROSS JOIN (SELECT kliv_mail._default_account() AS default_account) AS v
              LEFT JOIN LATERAL unnest(CASE WHEN p_group_by = 'tag' THEN (SELECT m.tags FROM kliv_mail._message AS m WHERE m.id = d.message_id) END) AS t (tag) ON true
              LEFT JOIN (SELECT a.name, kliv_mail._reports_complaints(a.name) AS reports FROM kliv_mail._accounts() AS a) AS c ON c.name = d.account
              WHERE d.finished_at >= p_since AND d.finished_at < p_until) AS x
        GROUP BY x.at, x.name ORDER BY x.at, x.name;
END;
$$;

CREATE FUNCTION kliv_mail._percent(part bigint, whole bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT round(100.0 * part / nullif(whole, 0), 2);
END;

CREATE FUNCTION kliv_mail.delivery_stats(since timestamptz DEFAULT now() - interval '1 day', until timestamptz DEFAULT now(),
    bucket interval DEFAULT '1 hour', group_by text DEFAULT 'account')
RETURNS TABLE (bucket_start timestamptz, group_name text, finished bigint, accepted bigint, delivered bigint, bounced_hard bigint, bounced_soft bigint,
    blocked bigint, complained bigint, failed bigint, suppressed bigint, cancelled bigint, expired bigint, simulated bigint,
    bounce_rate numeric, complaint_rate numeric)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.delivery_stats IS
$$How many deliveries finished how from since until (not including) until: a row for each bucket and group in which any did. accepted: a server took them; delivered: reports say so; blocked: by the receiver's policy. bounce_rate: hard bounces in percent of what servers judged; complaint_rate: complaints in percent of what was accepted, NULL where no provider tells of complaints. Played mail (simulated) counts in neither. bucket: from a second on, in days and smaller units, at most 10000 of them.
group_by: account | message_type | topic | template | tag | domain
A delivery with several tags counts in the group of each, one without in the group NULL.
Errors: 22023 since not before until, no such bucket or group, 54000 too many buckets.
Example: SELECT * FROM kliv_mail.delivery_stats(now() - interval '7 days', bucket => '1 day', group_by => 'message_type');$$;
