"""The pages of django_mail.py: Django's password reset, and one whose request fails behind it.

Copyright (c) 2026, the kliv_mail developers
"""
from django.contrib.auth import views
from django.urls import include, path


class FailingReset(views.PasswordResetView):
    def form_valid(self, form):
        super().form_valid(form)
        raise RuntimeError("the request fails, and its transaction with it")


urlpatterns = [
    path("reset/", views.PasswordResetView.as_view()),
    path("reset-and-fail/", FailingReset.as_view()),
    path("accounts/", include("django.contrib.auth.urls")),
]
