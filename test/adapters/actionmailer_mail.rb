# actionmailer_mail.rb HOST PORT USER: ActionMailer's mail through adapters/kliv_mail_actionmailer.rb.
#
# A password reset by a token of ActiveRecord's own (signed_id), in a transaction
# that commits and in one that rolls back, and a mail with everything.
#
# Copyright (c) 2026, the kliv_mail developers
require "logger"
require_relative "../../adapters/kliv_mail_actionmailer"

host, port, user = ARGV
ActiveRecord::Base.establish_connection(adapter: "postgresql", host: host, port: port, username: user, database: "postgres", min_messages: "warning")
ActiveRecord::Base.connection.create_table(:rails_users) { |table| table.string :email }
ActiveRecord::Base.signed_id_verifier_secret = "of the tests"
ActionMailer::Base.delivery_method = :kliv_mail

class User < ActiveRecord::Base
  self.table_name = "rails_users"
end

class Mailer < ActionMailer::Base
  default from: "App <app@example.com>"

  def reset(user)
    token = user.signed_id(purpose: :password_reset, expires_in: 900)
    mail(to: user.email, subject: "Your new password", body: "https://app.example/reset?token=#{token}")
  end

  def everything
    attachments["売上.csv"] = { mime_type: "text/csv; charset=utf-8", content: "品名,金額\n煎茶,3\n" }
    attachments["bytes.bin"] = (0..255).to_a.pack("C*")
    attachments.inline["logo.png"] = "\x89PNG\r\n\x1a\n".b
    headers["X-Order"] = "7"
    mail(from: '"山田, 太郎" <app@example.com>', to: ["rails-all@example.com", "花子 <hanako@example.com>"], cc: "cc@example.com",
         bcc: "rails-bcc@example.com", reply_to: "help@example.com", subject: "領収書 No. 7",
         delivery_method_options: { tags: ["receipt"], idempotency_key: "receipt-rails" }) do |format|
      format.text { render plain: "お買い上げ" }
      format.html { render html: "<p>お買い上げ <img src=\"#{attachments['logo.png'].url}\"></p>".html_safe }
    end
  end

  def html
    mail(to: "rails-html@example.com", subject: "HTML") { |format| format.html { render html: "<p>only <b>HTML</b></p>".html_safe } }
  end

  def docomo
    mail(to: "rails..docomo@docomo.ne.jp", subject: "docomo", body: "b")
  end

  def wrong
    mail(to: "no address", subject: "s", body: "b")
  end

  def calendar
    mail(to: "a@example.com", subject: "s") do |format|
      format.text { render plain: "b" }
      format.ics { render plain: "BEGIN:VCALENDAR" }
    end
  end
end

Mime::Type.register "text/calendar", :ics unless Mime[:ics]
User.transaction { Mailer.reset(User.create!(email: "rails-kept@example.com")).deliver_now }
User.transaction do
  Mailer.reset(User.create!(email: "rails-lost@example.com")).deliver_now
  raise ActiveRecord::Rollback
end
raise "the user of the lost transaction is there" if User.exists?(email: "rails-lost@example.com")

Mailer.everything.deliver_now
Mailer.docomo.deliver_now
2.times { ActiveRecord::Base.cache { Mailer.html.deliver_now } }
{ wrong: ActiveRecord::StatementInvalid, calendar: ArgumentError }.each do |name, error|
  begin
    Mailer.public_send(name).deliver_now
  rescue error
    next
  end
  abort "#{name}: no error"
end
puts "ok"
