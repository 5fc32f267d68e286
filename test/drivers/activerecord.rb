# activerecord.rb HOST PORT USER FILE: the mail in the file by ActiveRecord, as one parameter.
#
# Copyright (c) 2026, the kliv_mail developers
require "logger"
require "active_record"
require "json"

host, port, user, file = ARGV
ActiveRecord::Base.establish_connection(adapter: "postgresql", host: host, port: port, username: user, database: "postgres")
mail = JSON.parse(File.read(file)).merge("to" => ["activerecord@example.com"])
parameter = ActiveRecord::Relation::QueryAttribute.new("mail", mail.to_json, ActiveRecord::Type::String.new)
ActiveRecord::Base.connection.exec_query("SELECT kliv_mail.send($1)", "send", [parameter])
