# frozen_string_literal: true

# kliv_mail_actionmailer: Rails' mail through kliv_mail, in the transaction that sends it.
#
#   require "kliv_mail_actionmailer"              # in an initializer
#   config.action_mailer.delivery_method = :kliv_mail
#
# A mail is queued when ActiveRecord's transaction commits, and never when it rolls
# back; deliver_now is fast, for it only queues. What send() knows and Mail does not
# goes into mail(..., delivery_method_options: { idempotency_key: "welcome-41" }).
#
# Copyright (c) 2026, the kliv_mail developers

require "action_mailer"
require "active_record"
require "json"

class KlivMailDelivery
  SEPARATE = %w[from to cc bcc reply-to subject date message-id mime-version
                content-type content-transfer-encoding content-disposition content-id].freeze

  attr_accessor :settings

  def initialize(settings = {})
    @settings = settings
  end

  def deliver!(mail)
    json = JSON.generate(mail_of(mail))
    type = ActiveRecord::Type::String.new
    # Not select_value(): the query cache would take the second of two equal mails for the first.
    ActiveRecord::Base.connection.exec_query(
      "SELECT kliv_mail.send($1::text::jsonb)", "kliv_mail",
      [ActiveRecord::Relation::QueryAttribute.new("mail", json, type)]
    )
  end

  private

  def mail_of(mail)
    text, html = bodies(mail)
    {
      from: addresses(mail, :from), to: addresses(mail, :to), cc: addresses(mail, :cc), bcc: addresses(mail, :bcc),
      reply_to: addresses(mail, :reply_to), subject: mail.subject.to_s, text: text, html: html,
      headers: headers(mail), attachments: mail.attachments.map { |part| file(part) }
    }.merge(settings)
  end

  def addresses(mail, field)
    return [] unless mail[field]
    # What Mail cannot parse kliv_mail may know (a..b@docomo.ne.jp), or say what is wrong with it.
    return [mail[field].value.to_s] unless mail[field].respond_to?(:addrs)

    mail[field].addrs.map { |entry| { address: entry.address, name: entry.display_name } }
  end

  # The text and the HTML; what is neither of them nor a file could only be lost.
  def bodies(mail)
    parts = leaves(mail).reject(&:attachment?)
    text = parts.select { |part| [nil, "text/plain"].include?(part.mime_type) }
    html = parts.select { |part| part.mime_type == "text/html" }
    other = parts - text - html
    if other.any? || text.size > 1 || html.size > 1
      raise ArgumentError, "kliv_mail sends one text and one HTML, and not these parts: #{parts.map(&:mime_type).join(', ')}"
    end
    [text.first&.decoded, html.first&.decoded]
  end

  def leaves(part)
    part.multipart? ? part.parts.flat_map { |inner| leaves(inner) } : [part]
  end

  def headers(mail)
    mail.header.fields.reject { |field| SEPARATE.include?(field.name.downcase) }.each_with_object({}) do |field, all|
      raise ArgumentError, "kliv_mail sends the header #{field.name.inspect} once" if all.key?(field.name)

      all[field.name] = field.decoded.to_s
    end
  end

  def file(part)
    {
      filename: part.filename, content: [part.body.decoded].pack("m0"),
      content_type: part.charset && part.mime_type.start_with?("text/") && part.has_charset? ? "#{part.mime_type}; charset=#{part.charset}" : part.mime_type,
      content_id: part.inline? ? part.cid : nil
    }
  end
end

ActionMailer::Base.add_delivery_method :kliv_mail, KlivMailDelivery
