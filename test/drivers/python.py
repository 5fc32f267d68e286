#!/usr/bin/python3
"""python.py HOST PORT USER FILE: the mail in the file by psycopg2 and by psycopg 3, as one parameter.

Copyright (c) 2026, the kliv_mail developers
"""
import json
import sys

import psycopg
import psycopg.types.json
import psycopg2
import psycopg2.extras

host, port, user, file = sys.argv[1:]
with open(file, encoding="utf-8") as text:
    mail = json.load(text)
for module, name, parameter in ((psycopg2, "psycopg2", psycopg2.extras.Json), (psycopg, "psycopg3", psycopg.types.json.Jsonb)):
    with module.connect(host=host, port=port, user=user, dbname="postgres") as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT kliv_mail.send(%s)", (parameter({**mail, "to": [f"{name}@example.com"]}),))
