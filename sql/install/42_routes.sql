-- Which account a delivery goes by: its own, or the one that takes over while that is in trouble.

-- The routes that are an account's own: its name, and while it is the one in use also '' and those
-- that are not in use, where reset_smtp() could not reach a row.
CREATE FUNCTION kliv_mail._own_routes(p_account text) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN p_account = kliv_mail._default_account() THEN ARRAY[p_account, '']
        || ARRAY(SELECT a.name FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account) AS a WHERE NOT a.in_use) ELSE ARRAY[p_account] END;
END;
$$;

-- May an account of ours send as that address?
CREATE FUNCTION kliv_mail._may_send(p_account text, p_address text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM kliv_mail._account AS a
                   WHERE a.name = p_account AND kliv_mail._may_send_as(p_address, a.from_address, a.allowed_senders));
END;
$$;

-- Failover: the account that takes over the mail of one that is in trouble of
-- its own (held by a reply, or its key): the next own one in route_order that
-- is well and may send for its address.  NULL: none, or no trouble.
CREATE FUNCTION kliv_mail._fallback(p_account text, at timestamptz) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a record;
    b record;
    v record;
BEGIN
    SELECT * INTO a FROM kliv_mail._accounts() AS x WHERE x.name = p_account AND x.own AND x.in_use AND x.problem IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v FROM kliv_mail._availability(p_account, at);
    IF v.blocked_until IS NULL OR v.held_by NOT IN ('account', 'key') THEN
        RETURN NULL;
    END IF;
    FOR b IN SELECT x.name FROM kliv_mail._accounts() AS x
             WHERE x.own AND x.in_use AND x.problem IS NULL AND (x.route_order, x.name) > (a.route_order, a.name)
             ORDER BY x.route_order, x.name LOOP
        CONTINUE WHEN NOT kliv_mail._may_send(b.name, a.from_address);
        SELECT * INTO v FROM kliv_mail._availability(b.name, at);
        IF v.blocked_until IS NULL THEN
            RETURN b.name;
        END IF;
    END LOOP;
    RETURN NULL;
END;
$$;

-- All that an account may claim from: its own routes, and those of accounts in
-- trouble whose fallback it is.  p_own: _own_routes(), where they are known.
CREATE FUNCTION kliv_mail._routes(p_account text, p_own text[] DEFAULT NULL) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_routes text[] := coalesce(p_own, kliv_mail._own_routes(p_account));
    v_name text;
BEGIN
    -- Only those that are held, and whose address it may send for, can have it as their fallback.
    -- Who may not send stands in for nobody: else a database full of held accounts would ask each of them about each other.
    IF p_account <> 'platform' AND EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.held_until > v_at AND q.held_by IN ('account', 'key') AND q.account <> p_account)
       AND (SELECT v.blocked_until IS NULL FROM kliv_mail._availability(p_account, v_at) AS v) THEN
        FOR v_name IN SELECT a.name FROM kliv_mail._quota AS q JOIN kliv_mail._account AS a ON a.name = q.account
                      WHERE q.held_until > v_at AND q.held_by IN ('account', 'key')
                        AND a.in_use AND a.name <> p_account AND kliv_mail._may_send(p_account, a.from_address) LOOP
            IF kliv_mail._fallback(v_name, v_at) = p_account THEN
                v_routes := v_routes || kliv_mail._own_routes(v_name);
            END IF;
        END LOOP;
    END IF;
    RETURN v_routes;
END;
$$;
